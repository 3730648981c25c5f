use super::*;
use crate::tests::{hex, secret, unhex};

// RFC 9180 appendix A.1.1: the KEM is that of our suite; its AEAD is not.
const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const SK_E: &str = "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736";
const PK_E: &str = "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431";
const SK_R: &str = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8";
const PK_R: &str = "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d";
const SHARED: &str = "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc";

const PLAIN: &[u8] = b"Beauty is truth, truth beauty";
/// PLAIN under the keys and info above with our suite (0x0020, 0x0001, 0x0002), base mode, empty aad, sequence number
/// 0: made by pyhpke 0.6.5, whose shared secret for them is SHARED too.
const SEALED: &str = "090b7dc225419f7da9e8b460becfbb96a26c7964d79b8010d397fa838589afa254267701d76b93925614730ccd";

fn private(text: &str) -> Secret<32> {
    Secret::from_hex(text).unwrap()
}

fn public(text: &str) -> [u8; 32] {
    unhex(text).try_into().unwrap()
}

#[test]
fn the_kem_is_that_of_rfc_9180() {
    assert_eq!(hex(&public_key(&private(SK_E))), PK_E);
    assert_eq!(hex(&public_key(&private(SK_R))), PK_R);
    let (enc, recipient) = (public(PK_E), public(PK_R));
    let encap = shared_secret(&private(SK_E), &recipient, &enc, &recipient).unwrap();
    let decap = shared_secret(&private(SK_R), &enc, &enc, &recipient).unwrap();
    assert_eq!(encap.to_hex().as_str(), SHARED);
    assert_eq!(decap.to_hex().as_str(), SHARED);
}

#[test]
fn our_suite_agrees_with_another_implementation() {
    let (enc, mut sealed) = seal(&public(PK_R), private(SK_E), &unhex(INFO), PLAIN).unwrap();
    assert_eq!((hex(&enc).as_str(), hex(&sealed).as_str()), (PK_E, SEALED));
    assert_eq!(open(&private(SK_R), &enc, &unhex(INFO), &mut sealed).unwrap(), PLAIN);
}

#[test]
fn nothing_opens_but_what_was_sealed() {
    let (enc, sealed) = seal(&public(PK_R), private(SK_E), b"info", PLAIN).unwrap();
    let opens = |key: &Secret<32>, enc: &[u8; 32], info: &[u8], sealed: &[u8]| {
        open(key, enc, info, &mut sealed.to_vec()).is_some()
    };
    assert!(opens(&private(SK_R), &enc, b"info", &sealed));
    assert!(!opens(&private(SK_E), &enc, b"info", &sealed));
    assert!(!opens(&private(SK_R), &enc, b"other", &sealed));
    for (_, changed) in crate::tests::tampered(&sealed) {
        assert!(!opens(&private(SK_R), &enc, b"info", &changed));
    }
    for (at, changed) in crate::tests::tampered(&enc) {
        // X25519 ignores the top bit of a public key (RFC 7748), but the KEM context does not.
        assert!(!opens(&private(SK_R), &changed.try_into().unwrap(), b"info", &sealed), "byte {at}");
    }
    for len in 0..aead::TAG_LEN {
        assert!(!opens(&private(SK_R), &enc, b"info", &sealed[..len]));
    }
}

#[test]
fn points_of_small_order_are_refused_on_both_sides() {
    // RFC 7748 section 6.1: all results of these are zero. The points of order 1, 2, 4 and 8, and p, p + 1.
    for point in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        assert!(seal(&public(point), secret(1), b"", PLAIN).is_none(), "{point}");
        assert!(open(&private(SK_R), &public(point), b"", &mut [0; 48]).is_none(), "{point}");
    }
}
