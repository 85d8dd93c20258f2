//! Small files in the cache folder.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes the file in one step, so that no other process reads half of it, and the folder that it is in.
pub(super) fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new("")))?;
    // In containers, all processes have the same number.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let partial = file.with_extension(format!("{}-{now}.partial", std::process::id()));
    std::fs::write(&partial, content)?;
    std::fs::rename(&partial, file)
}
