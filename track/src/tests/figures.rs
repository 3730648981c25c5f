//! What a watch costs. Run by hand: `cargo test --release -p landfall-track figures -- --ignored --nocapture`.

use std::time::Instant;

use super::rig::{Loop, Zram, attach, ready, run};
use crate::marking::Marks as How;
use crate::watch::{Options, Watch};

/// Operations each second of random writes, by what fio prints.
fn speed(path: &std::path::Path, engine: &str) -> u64 {
    let said = run(&format!(
        "fio --name=w --filename={} --rw=randwrite --bs=4k --direct=1 {engine} --time_based=1 --runtime=4 --minimal",
        path.display()
    ));
    said.split(';').nth(48).and_then(|field| field.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[test]
#[ignore = "measures"]
fn figures() {
    if !ready(&["fio"]) {
        return;
    }
    for _ in 0..3 {
        let begun = Instant::now();
        crate::support().unwrap();
        eprintln!("support {:?}", begun.elapsed());
        let begun = Instant::now();
        crate::layout::of_this_kernel().unwrap();
        eprintln!("layout {:?}", begun.elapsed());
    }
    let (disk, zram) = (Loop::new(256), Zram::new(256).unwrap());
    for (name, path) in [("loop", &disk.path), ("zram", &zram.path)] {
        for way in [How::Bits, How::Bytes] {
            let begun = Instant::now();
            let mut watch = attach(path, Options { marks: Some(way), ..Options::default() }).unwrap();
            let attached = begun.elapsed();
            let begun = Instant::now();
            (0..100).for_each(|_| drop(watch.take()));
            eprintln!("{name} {way:?}: attach {attached:?}, take {:?}", begun.elapsed() / 100);
        }
        let engine = if name == "loop" {
            "--ioengine=io_uring --iodepth=32"
        } else {
            "--ioengine=psync --numjobs=2 --group_reporting=1"
        };
        let _ = speed(path, engine);
        for _ in 0..3 {
            let without = speed(path, engine);
            let mut watch = Watch::attach(path).unwrap();
            let with = speed(path, engine);
            let lost = watch.take().lost;
            eprintln!("{name}: {without} without, {with} with a watch; lost: {lost:?}");
        }
    }
}
