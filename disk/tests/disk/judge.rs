//! `qemu-img`, and what the tests ask it.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use landfall_disk::Format;

/// Runs a program; `None`, loudly, if it is not installed.
pub(crate) fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("SKIPPED: {program} is not installed");
            None
        }
        Err(e) => panic!("{program}: {e}"),
    }
}

/// Runs `qemu-img` and returns what it printed; `None` if it is not installed.
pub(crate) fn qemu_img(args: &[&str]) -> Option<String> {
    let output = run("qemu-img", args)?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {args:?}: {text}");
    Some(text)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

const fn driver(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vhd => "vpc",
    }
}

/// Size of the disk as QEMU sees it.
pub(crate) fn virtual_size(path: &Path, format: Format) -> Option<u64> {
    let info = qemu_img(&["info", "-f", driver(format), "--output=json", text(path)])?;
    // The last one: before it come those of the files that the image consists of.
    let at = info.rfind("\"virtual-size\":").expect("info has a virtual size") + "\"virtual-size\":".len();
    let number: String =
        info[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Some(number.parse().expect("a number"))
}

/// The image is sound and holds exactly these bytes, then zeroes up to its size.
pub(crate) fn assert_holds(path: &Path, format: Format, bytes: &[u8], size: u64) {
    if format == Format::Qcow2 {
        qemu_img(&["check", "-f", "qcow2", text(path)]);
    }
    if let Some(seen) = virtual_size(path, format) {
        // QEMU counts in sectors; the bytes of a raw file tell exactly.
        assert_eq!(seen, size.next_multiple_of(512), "{format:?}");
    }
    let raw = tempfile::NamedTempFile::new().expect("temporary file");
    let args = ["convert", "-f", driver(format), "-O", "raw", text(path), text(raw.path())];
    if qemu_img(&args).is_none() {
        return;
    }
    let read = std::fs::read(raw.path()).expect("converted");
    let at = read.iter().zip(bytes).position(|(a, b)| a != b);
    assert_eq!(at, None, "{format:?}: first difference");
    assert!(read.len() >= bytes.len() && read[bytes.len()..].iter().all(|&b| b == 0), "{format:?}: padding");
}

/// Both images hold the same disk.
pub(crate) fn assert_same(a: &Path, a_format: Format, b: &Path, b_format: Format) {
    qemu_img(&["compare", "-f", driver(a_format), "-F", driver(b_format), text(a), text(b)]);
}
