use super::*;
use crate::KeyErrorKind;
use crate::sealed::SALT_LEN;
use crate::tests::{SALT, data, domain, epoch, golden, hex, recovery, run, secret, site, tampered, unhex, vault};

fn aad(epoch: EpochId, id: &str) -> FrameAad {
    FrameAad { vault: vault(), epoch, id: id.parse().unwrap(), raw_len: 1000, codec: 1 }
}

fn content_aad() -> FrameAad {
    aad(epoch().epoch(), golden::CHUNK_ID)
}

fn opener() -> EpochOpener {
    let epoch = epoch();
    EpochOpener::new(vault(), domain(), epoch.epoch(), &secret(0x80))
}

/// `aad` with each field changed, and what that is.
fn wrong_aads(aad: FrameAad) -> [(&'static str, FrameAad); 5] {
    [
        ("vault", FrameAad { vault: VaultId::from_bytes([1; 16]), ..aad }),
        ("epoch", FrameAad { epoch: EpochId::from_bytes([1; 16]), ..aad }),
        ("id", FrameAad { id: ChunkId::from_bytes([1; 32]), ..aad }),
        ("raw_len", FrameAad { raw_len: aad.raw_len + 1, ..aad }),
        ("codec", FrameAad { codec: 0, ..aad }),
    ]
}

#[test]
fn additional_data_is_71_bytes_in_the_formats_order() {
    let bytes = content_aad().to_bytes();
    let expected =
        [&[1, 0][..], &run::<16>(0xa0), &run::<16>(0xb0), &unhex(golden::CHUNK_ID), &1000_u32.to_le_bytes(), &[1]];
    assert_eq!(bytes.as_slice(), expected.concat());
}

#[test]
fn content_frames_are_golden_and_open() {
    let (prk, aad) = (epoch().prk, content_aad());
    let mut frame = Vec::new();
    content(&prk, &aad).seal_with_salt(&run(SALT), &aad.to_bytes(), &data(), &mut frame).unwrap();
    assert_eq!(hex(&frame), golden::FRAME);
    assert_eq!(opener().open_in_place(&content_aad(), &mut frame).unwrap(), data());
}

#[test]
fn index_frames_are_golden_and_open() {
    let aad = aad(EpochId::INDEX, golden::PAGE_ID);
    let index = Prk::new(&secret(0x20));
    let mut frame = Vec::new();
    page(&index, &aad).seal_with_salt(&run(SALT), &aad.to_bytes(), &data(), &mut frame).unwrap();
    assert_eq!(hex(&frame), golden::PAGE);
    assert_eq!(site().index_sealer().open_page(&aad, &frame).unwrap(), data());
}

#[test]
fn sealing_appends_exactly_the_overhead_and_never_the_same_twice() {
    let (sealer, opener) = (epoch(), opener());
    for len in [0, 1, 15, 16, 17, 4096, 100_000] {
        let data = vec![7; len];
        let mut out = b"before".to_vec();
        sealer.seal_into(&content_aad(), &data, &mut out).unwrap();
        sealer.seal_into(&content_aad(), &data, &mut out).unwrap();
        let frames = &mut out[6..];
        assert_eq!(frames.len(), 2 * (len + FRAME_OVERHEAD));
        let (first, second) = frames.split_at_mut(len + FRAME_OVERHEAD);
        assert_ne!(first[..SALT_LEN], second[..SALT_LEN]);
        assert_ne!(first[SALT_LEN..], second[SALT_LEN..]);
        assert_eq!(opener.open_in_place(&content_aad(), first).unwrap(), data);
        assert_eq!(opener.open_in_place(&content_aad(), second).unwrap(), data);
        assert_eq!(&out[..6], b"before");
    }
}

#[test]
fn a_frame_with_any_byte_changed_does_not_open_and_stays_as_it_is() {
    for (at, changed) in tampered(&unhex(golden::FRAME)) {
        let mut frame = changed.clone();
        let error = opener().open_in_place(&content_aad(), &mut frame).unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Corrupt, "byte {at}");
        assert_eq!(frame, changed, "byte {at}");
    }
    let page_aad = aad(EpochId::INDEX, golden::PAGE_ID);
    for (at, changed) in tampered(&unhex(golden::PAGE)) {
        let error = site().index_sealer().open_page(&page_aad, &changed).unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Corrupt, "byte {at}");
    }
}

#[test]
fn a_frame_cut_short_does_not_open() {
    let frame = unhex(golden::FRAME);
    for len in 0..frame.len() {
        let error = opener().open_in_place(&content_aad(), &mut frame[..len].to_vec()).unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Corrupt, "{len} bytes");
    }
}

#[test]
fn a_frame_taken_for_another_does_not_open() {
    for (field, wrong) in wrong_aads(content_aad()) {
        let kind = if matches!(field, "vault" | "epoch") { KeyErrorKind::Wrong } else { KeyErrorKind::Corrupt };
        let error = opener().open_in_place(&wrong, &mut unhex(golden::FRAME)).unwrap_err();
        assert_eq!(error.kind(), kind, "{field}");
    }
    let page_aad = aad(EpochId::INDEX, golden::PAGE_ID);
    for (field, wrong) in wrong_aads(page_aad) {
        let kind = if matches!(field, "vault" | "epoch") { KeyErrorKind::Wrong } else { KeyErrorKind::Corrupt };
        let error = site().index_sealer().open_page(&wrong, &unhex(golden::PAGE)).unwrap_err();
        assert_eq!(error.kind(), kind, "{field}");
    }
}

#[test]
fn the_vault_and_epoch_are_authenticated_and_not_only_compared() {
    // An opener that is told that its key is of another vault or epoch: the comparison passes, the tag must not.
    let wrong_vault = VaultId::from_bytes([1; 16]);
    let opener = EpochOpener::new(wrong_vault, domain(), epoch().epoch(), &secret(0x80));
    let aad = FrameAad { vault: wrong_vault, ..content_aad() };
    assert_eq!(opener.open_in_place(&aad, &mut unhex(golden::FRAME)).unwrap_err().kind(), KeyErrorKind::Corrupt);

    let wrong_epoch = EpochId::from_bytes([1; 16]);
    let opener = EpochOpener::new(vault(), domain(), wrong_epoch, &secret(0x80));
    let aad = FrameAad { epoch: wrong_epoch, ..content_aad() };
    assert_eq!(opener.open_in_place(&aad, &mut unhex(golden::FRAME)).unwrap_err().kind(), KeyErrorKind::Corrupt);
}

#[test]
fn another_key_does_not_open_a_frame() {
    let opener = EpochOpener::new(vault(), domain(), epoch().epoch(), &secret(0x81));
    let error = opener.open_in_place(&content_aad(), &mut unhex(golden::FRAME)).unwrap_err();
    assert_eq!(error.kind(), KeyErrorKind::Corrupt);
}

#[test]
fn a_sealer_refuses_what_is_not_of_its_vault_and_epoch() {
    for (field, wrong) in &wrong_aads(content_aad())[..2] {
        let mut out = vec![1];
        let error = epoch().seal_into(wrong, b"data", &mut out).unwrap_err();
        assert_eq!((error.kind(), out), (KeyErrorKind::Wrong, vec![1]), "{field}");
        let error = site().index_sealer().seal_page(wrong, b"data").unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Wrong, "{field}");
    }
}

#[test]
fn content_sealed_by_a_gateway_opens_with_the_recovery_key() {
    let (recovery, site) = (recovery(), site());
    let sealer = ContentSealer::open_epoch(&site, domain()).unwrap();
    let wrapped = sealer.wrapped_for(&site, &recovery.recipient()).unwrap();
    let aad = aad(sealer.epoch(), golden::CHUNK_ID);
    let mut frame = Vec::new();
    sealer.seal_into(&aad, b"data", &mut frame).unwrap();
    let opener = recovery.unwrap_epoch(&wrapped, &site.public()).unwrap();
    assert_eq!((opener.epoch(), opener.domain()), (sealer.epoch(), domain()));
    assert_eq!(opener.open_in_place(&aad, &mut frame).unwrap(), b"data");
}

#[test]
fn epochs_are_never_the_same_twice() {
    let (one, two) =
        (ContentSealer::open_epoch(&site(), domain()).unwrap(), ContentSealer::open_epoch(&site(), domain()).unwrap());
    assert_ne!(one.epoch(), two.epoch());
    assert_ne!(one.key.as_bytes(), two.key.as_bytes());
}
