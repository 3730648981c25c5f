use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::KeyErrorKind;
use crate::tests::{golden, recovery, secret, tampered, vault};

fn said(lines: &[String]) -> (KeyErrorKind, String) {
    let error = combine(lines).err().expect("refused");
    (error.kind(), error.to_string())
}

fn combines(lines: &[String]) -> bool {
    let key = combine(lines).unwrap();
    key.vault_id() == vault() && key.seed().as_bytes() == recovery().seed().as_bytes()
}

/// The bytes of a line, its check left out.
fn bytes(line: &str) -> Vec<u8> {
    Share::from_text(1, line).unwrap().0.as_bytes().to_vec()
}

/// A line of these bytes, with a right check.
fn line(bytes: &[u8]) -> String {
    Share(Secret::copied_from(bytes).unwrap()).to_text()
}

/// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1, bit by bit.
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        product ^= if b & 1 == 1 { a } else { 0 };
        a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1d };
        b >>= 1;
    }
    product
}

fn inverse(a: u8) -> u8 {
    (1..=255).find(|b| multiply(a, *b) == 1).unwrap()
}

/// Value at 0 of the polynomial through the points: Lagrange's formula as in a book.
fn at_zero(points: &[(u8, u8)]) -> u8 {
    points.iter().fold(0, |sum, (x, y)| {
        let others = points.iter().filter(|(other, _)| other != x);
        let weight = others.fold(1, |w, (other, _)| multiply(w, multiply(*other, inverse(other ^ x))));
        sum ^ multiply(weight, *y)
    })
}

#[test]
fn shares_of_another_implementation_combine() {
    assert!(combines(&golden::SHARES.map(str::to_owned)));
}

#[test]
fn shares_are_text_of_a_fixed_shape() {
    for share in split(&recovery(), 2, 3).unwrap() {
        let groups: Vec<&str> = share.split('-').collect();
        assert_eq!((groups[0], groups.len(), share.len()), ("LF1", 25, 143));
        assert!(groups[1..24].iter().all(|group| group.len() == 5) && groups[24].len() == 1);
    }
}

#[test]
fn the_field_and_the_layout_are_the_formats() {
    let shares: Vec<Vec<u8>> = split(&recovery(), 3, 5).unwrap().iter().map(|line| bytes(line)).collect();
    for (x, share) in (1..).zip(&shares) {
        assert_eq!(share[0], 1);
        assert_eq!(share[1..17], *vault().as_bytes());
        assert_eq!(share[17..25], shares[0][17..25]);
        assert_eq!(share[25..28], [3, 5, x]);
    }
    let secret: Vec<u8> = (28..68).map(|j| at_zero(&[4, 0, 2].map(|i: usize| (shares[i][27], shares[i][j])))).collect();
    assert_eq!(secret[..32], *recovery().seed().as_bytes());
    assert_eq!(secret[32..], tag(vault(), recovery().seed()));
    let set = |line: &String| bytes(line)[17..25].to_vec();
    assert_ne!(set(&split(&recovery(), 3, 5).unwrap()[0]), shares[0][17..25], "each split is a set of its own");
}

#[test]
fn two_splits_of_one_key_have_no_share_in_common() {
    let [one, two] = [(); 2].map(|()| split(&recovery(), 2, 5).unwrap());
    for (a, b) in one.iter().zip(&two) {
        let (a, b) = (bytes(a), bytes(b));
        let equal = (28..68).filter(|j| a[*j] == b[*j]).count();
        // By chance, 40 random bytes agree in 8 places with a probability below 2^-36.
        assert!(equal < 8, "x = {}: {equal} of 40 bytes", a[27]);
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for (threshold, shares) in [(0, 0), (0, 3), (1, 2), (1, 255), (4, 3), (255, 254)] {
        let error = split(&recovery(), threshold, shares).err().unwrap();
        assert_eq!(error.kind(), KeyErrorKind::Usage, "{threshold} of {shares}");
    }
    assert!(combines(&split(&recovery(), 1, 1).unwrap()));
    let most = split(&recovery(), 255, 255).unwrap();
    assert!(combines(&most));
    assert_eq!(said(&most[1..]).0, KeyErrorKind::Missing);
}

#[test]
fn case_dashes_and_outer_blanks_do_not_matter() {
    let shares = split(&recovery(), 2, 2).unwrap();
    let lower = shares[0].to_lowercase();
    let bare = format!("  {}\r\n", shares[1].replace('-', ""));
    assert!(combines(&[lower, bare]));
}

#[test]
fn mistyped_shares_are_named() {
    let shares = split(&recovery(), 2, 3).unwrap();
    let with = |wrong: String| said(&[shares[0].clone(), wrong]);
    let mut swapped = shares[1].clone().into_bytes();
    let at = (4..swapped.len() - 1).find(|i| {
        let (a, b) = (swapped[*i], swapped[i + 1]);
        a != b && a != b'-' && b != b'-'
    });
    swapped.swap(at.unwrap(), at.unwrap() + 1);
    for (name, wrong) in [
        ("swapped", String::from_utf8(swapped).unwrap()),
        ("prefix", shares[1].replace("LF1", "LF2")),
        ("empty", String::new()),
        ("short", shares[1][..shares[1].len() - 1].to_owned()),
        ("long", shares[1].clone() + "A"),
        ("digit", shares[1][..shares[1].len() - 1].to_owned() + "8"),
        ("blank", shares[1].replacen('-', " ", 3)),
        ("beyond", shares[1].clone() + "é"),
    ] {
        let (kind, message) = with(wrong);
        assert_eq!(kind, KeyErrorKind::Corrupt, "{name}: {message}");
        assert!(message.contains("share 2 is mistyped"), "{name}: {message}");
    }
    let (_, message) = with(shares[1].replacen("LF1-", "LF1-0", 1));
    assert!(message.contains("'0'"), "{message}");
}

#[test]
fn every_mistyped_character_is_found() {
    let shares = split(&recovery(), 2, 2).unwrap();
    let text: Vec<char> = shares[1].chars().collect();
    for at in (4..text.len()).filter(|at| text[*at] != '-') {
        let mut wrong = text.clone();
        wrong[at] = if wrong[at] == 'A' { 'B' } else { 'A' };
        let (kind, message) = said(&[shares[0].clone(), wrong.iter().collect()]);
        assert!(kind == KeyErrorKind::Corrupt && message.contains("share 2 is mistyped"), "character {at}: {message}");
    }
}

#[test]
fn foreign_shares_are_named() {
    let shares = split(&recovery(), 2, 3).unwrap();
    let other_split = split(&recovery(), 2, 3).unwrap();
    let other_vault = split(&RecoveryKey::from_seed(VaultId::from_bytes([1; 16]), secret(0)), 2, 3).unwrap();
    for (foreign, what) in [(&other_split[2], "another split"), (&other_vault[2], "another vault")] {
        let (kind, message) = said(&[shares[0].clone(), foreign.clone(), shares[1].clone()]);
        assert_eq!(kind, KeyErrorKind::Wrong, "{message}");
        assert!(message.contains("share 2 (x = 3) is foreign") && message.contains(what), "{message}");
    }
}

#[test]
fn repeated_and_missing_shares_are_named() {
    let shares = split(&recovery(), 3, 5).unwrap();
    let (kind, message) = said(&[shares[4].clone(), shares[1].clone(), shares[4].clone()]);
    assert_eq!(kind, KeyErrorKind::Usage);
    assert!(message.contains("share 3 is repeated") && message.contains("x = 5"), "{message}");
    let (kind, message) = said(&[shares[4].clone(), shares[1].clone()]);
    assert_eq!(kind, KeyErrorKind::Missing);
    assert!(
        message.contains("2 of 3 shares") && message.contains("x = 5, 2") && message.contains("1 missing"),
        "{message}"
    );
    let (kind, message) = said(&[]);
    assert!(kind == KeyErrorKind::Missing && message.contains("no share"), "{message}");
}

#[test]
fn forged_shares_with_a_right_check_give_no_key() {
    let shares = split(&recovery(), 2, 3).unwrap();
    let genuine = bytes(&shares[1]);
    for (at, forged) in tampered(&genuine).skip(25) {
        let (kind, message) = said(&[shares[0].clone(), line(&forged)]);
        let refused = matches!(kind, KeyErrorKind::Corrupt | KeyErrorKind::Wrong | KeyErrorKind::Usage);
        assert!(refused, "byte {at}: {message}");
    }
    let mut zero = genuine.clone();
    zero[27] = 0;
    assert_eq!(said(&[line(&zero)]).0, KeyErrorKind::Corrupt);
    let mut later = genuine;
    later[0] = 2;
    assert_eq!(said(&[line(&later)]).0, KeyErrorKind::Unsupported);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_k_of_n_work_and_fewer_are_missing(
        (threshold, shares, chosen) in (2_u8..=8)
            .prop_flat_map(|threshold| (Just(threshold), threshold..=12))
            .prop_flat_map(|(k, n)| {
                let all: Vec<usize> = (0..usize::from(n)).collect();
                (Just(k), Just(n), subsequence(all, usize::from(k)..=usize::from(n)).prop_shuffle())
            })
    ) {
        let lines = split(&recovery(), threshold, shares).unwrap();
        let mut given: Vec<String> = chosen.iter().map(|i| lines[*i].clone()).collect();
        prop_assert!(combines(&given));
        given.truncate(usize::from(threshold) - 1);
        let (kind, message) = said(&given);
        prop_assert_eq!(kind, KeyErrorKind::Missing);
        let named = format!("{} of {threshold} shares are here", given.len());
        prop_assert!(message.contains(&named), "{}", message);
    }
}
