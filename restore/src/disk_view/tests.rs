use super::*;

#[test]
fn who_goes_straight_on_is_read_ahead_further_and_further_and_others_are_told_apart() {
    let mut streams = Streams::default();
    let mut read = |start, len| streams.read(Extent { start, len });
    assert_eq!(read(0, 4096), AHEAD_BYTES);
    assert_eq!(read(1 << 30, 4096), AHEAD_BYTES, "somewhere else");
    assert_eq!(read(4096, 4096), 2 * AHEAD_BYTES, "the first goes on");
    assert_eq!(read((1 << 30) + 4096, 4096), 2 * AHEAD_BYTES, "so does the other");
    for n in 2..20 {
        assert!(read(n * 4096, 4096) <= AHEAD_BYTES_MAX);
    }
    assert_eq!(read(20 * 4096, 4096), AHEAD_BYTES_MAX);
    for n in 0..STREAMS as u64 {
        read((n + 10) << 30, 4096);
    }
    assert_eq!(read(21 * 4096, 4096), AHEAD_BYTES, "forgotten: too many others came");
}
