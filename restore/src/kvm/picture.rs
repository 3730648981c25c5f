//! A picture of a machine's screen. What stands on it is the guest's: its size is checked before it is read.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use landfall_vault::PICTURE_BYTES_MAX;
use serde_json::json;

use super::Files;
use super::machine::Running;

/// What a picture of a format begins with.
const FORMATS: &[(&str, &[u8])] = &[("png", b"\x89PNG\r\n\x1a\n"), ("ppm", b"P6")];

/// A picture.
pub(crate) struct Picture {
    pub(crate) format: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Running {
    /// Takes a picture: PNG, or PPM of a QEMU that cannot make the other.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn picture(&self, files: &Files) -> Result<Picture, String> {
        let path = files.picture();
        let mut why = String::new();
        for (format, magic) in FORMATS {
            let _ = fs::remove_file(&path);
            let mut arguments = json!({ "filename": path });
            if *format == "png" {
                arguments["format"] = json!(format);
            }
            if let Err(error) = self.execute("screendump", arguments).await {
                why = format!("QEMU takes none: {}", error.desc().unwrap_or("it does not answer"));
                continue;
            }
            match read(&path, magic) {
                Ok(bytes) => return Ok(Picture { format, bytes }),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

fn read(path: &Path, magic: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(PICTURE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    opened.map_err(|e| format!("it cannot be read: {e}"))?;
    if bytes.len() > PICTURE_BYTES_MAX {
        return Err(format!("it has more than {} MiB", PICTURE_BYTES_MAX >> 20));
    }
    if !bytes.starts_with(magic) {
        return Err("what QEMU wrote is no picture".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_or_no_picture_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("picture");
        assert!(read(&file, b"P6").expect_err("nothing there").contains("cannot be read"));
        fs::write(&file, b"P6 1 1 255\nabc").expect("own file");
        assert_eq!(read(&file, b"P6").expect("a picture"), b"P6 1 1 255\nabc");
        assert!(read(&file, b"\x89PNG").expect_err("another format").contains("no picture"));
        let mut large = b"P6".to_vec();
        large.resize(PICTURE_BYTES_MAX + 1, 0);
        fs::write(&file, &large).expect("own file");
        assert!(read(&file, b"P6").expect_err("too large").contains("more than"));
    }
}
