use super::*;

const KIB: u64 = 1024;
const GIB: u64 = 1 << 30;

#[test]
fn who_goes_straight_on_is_read_ahead_further_and_further_in_large_pieces() {
    let mut streams = Streams::default();
    let mut fetched = Vec::new();
    let mut until = 0;
    for at in (0..64 << 20).step_by(256 << 10) {
        let (behind, straight_on) = streams.read(Extent { start: at, len: 256 * KIB });
        assert_eq!(straight_on, at > 0);
        if behind.len > 0 {
            assert!(behind.start >= until, "nothing is fetched twice");
            until = behind.end();
            fetched.push(behind.len);
        }
        assert!(until >= at + 256 * KIB + AHEAD_BYTES / 2, "it is always ahead");
        assert!(until <= at + 256 * KIB + AHEAD_BYTES_MAX, "and never too far");
    }
    assert!(fetched.len() < 32, "few requests: {fetched:?}");
}

#[test]
fn readers_are_told_apart_and_requests_of_one_may_come_in_any_order() {
    let mut streams = Streams::default();
    let mut read = |start| streams.read(Extent { start, len: 256 * KIB });
    assert!(!read(0).1);
    assert!(!read(GIB).1, "somewhere else");
    assert!(read(512 * KIB).1, "the first goes on, although a request was overtaken");
    assert!(read(256 * KIB).1, "here it is");
    assert!(read(GIB + 256 * KIB).1, "so does the other");
    for n in 2..2 + STREAMS as u64 {
        assert!(!read(n * GIB).1);
    }
    assert!(!read(768 * KIB).1, "forgotten: too many others came");
}
