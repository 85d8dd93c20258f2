//! Letting go of what was read from files by mapping them into memory.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "calls of the C library without a safe wrapper"))]

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Held for reading by who may map a graph's files, or end that.
static MAPPING: RwLock<()> = RwLock::new(());

/// Files to let go of as soon as nobody maps any.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// To be held while a session is opened or closed, and in the first run of a batch size.
pub(super) fn may_map() -> RwLockReadGuard<'static, ()> {
    MAPPING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of the pages of `files` that are mapped for reading alone. OpenVINO reads weights so, makes its own of them, and keeps the file
/// mapped; the pages that it has read count as memory of the process, as often as there are sessions. Who needs a page again gets it from
/// the system, which keeps it as long as it has no better use for the memory. While another session is being opened or closed, that is
/// left to whoever opens the last of them: what is mapped must not change meanwhile.
pub(super) fn let_go_of_mapped(files: impl IntoIterator<Item = PathBuf>) {
    // The system names what links lead to.
    let files = files.into_iter().filter_map(|file| file.canonicalize().ok());
    let pending = || PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    pending().extend(files);
    if let Ok(_nobody_maps) = MAPPING.try_write() {
        let files = std::mem::take(&mut *pending());
        #[cfg(target_os = "linux")]
        linux::let_go_of_mapped(&files);
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ops::Range;
    use std::path::{Path, PathBuf};

    use super::super::mappings::Mapping;

    pub(super) fn let_go_of_mapped(files: &[PathBuf]) {
        let Ok(mappings) = std::fs::read("/proc/self/maps") else { return };
        for pages in String::from_utf8_lossy(&mappings).lines().filter_map(|line| read_only(line, files)) {
            // SAFETY: the graph's file is still mapped there, since who would end that waits. Whether the pages are in memory shows nobody
            // who reads them, and nobody writes to a graph's file in memory, so that nothing is lost.
            unsafe { libc::madvise(pages.start as *mut libc::c_void, pages.len(), libc::MADV_DONTNEED) };
        }
    }

    /// The addresses of a line of `/proc/self/maps`, if one of the files is mapped there, for reading alone.
    fn read_only(line: &str, files: &[PathBuf]) -> Option<Range<usize>> {
        let Mapping { addresses, permissions, name } = Mapping::parse(line)?;
        let is_read_only = matches!(permissions, "r--p" | "r--s");
        (is_read_only && files.iter().any(|file| file == Path::new(name))).then_some(addresses)
    }

    #[cfg(test)]
    mod tests {
        use std::fs::{File, read_to_string};
        use std::os::fd::AsRawFd;

        use super::super::let_go_of_mapped;
        use super::*;

        const SIZE: usize = 1 << 20;

        /// Maps a file of `SIZE` bytes, for good.
        fn map(file: &Path, protection: libc::c_int) -> &'static mut [u8] {
            let opened = File::options().read(true).write(true).open(file).unwrap();
            // SAFETY: a new private mapping of a file that is as long, which is never unmapped. Only what may be is written to.
            unsafe {
                let place =
                    libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_PRIVATE, opened.as_raw_fd(), 0);
                assert_ne!(place, libc::MAP_FAILED);
                std::slice::from_raw_parts_mut(place.cast(), SIZE)
            }
        }

        /// Kilobytes of the mapping that count as the process's.
        fn resident(mapping: &[u8]) -> usize {
            let smaps = read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", mapping.as_ptr() as usize);
            let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let resident = lines.skip(1).find_map(|line| line.strip_prefix("Rss:")).unwrap();
            resident.trim().trim_end_matches(" kB").parse().unwrap()
        }

        #[test]
        fn what_was_read_is_let_go_of_and_what_was_written_is_not() {
            let folder = tempfile::tempdir().unwrap();
            let [graph, weights, other] = ["a graph.onnx", "weights", "other"].map(|name| folder.path().join(name));
            for file in [&graph, &weights, &other] {
                std::fs::write(file, vec![7; SIZE]).unwrap();
            }
            let (read, other) = (map(&weights, libc::PROT_READ), map(&other, libc::PROT_READ));
            let written = map(&graph, libc::PROT_READ | libc::PROT_WRITE);
            written.fill(9);
            let sum = |bytes: &[u8]| bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>();
            assert_eq!((sum(read), sum(other)), (7 * SIZE, 7 * SIZE));
            assert_eq!([resident(read), resident(written), resident(other)], [SIZE >> 10; 3]);
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&weights, &link).unwrap();
            let_go_of_mapped([link, graph]);
            assert_eq!([resident(read), resident(written), resident(other)], [0, SIZE >> 10, SIZE >> 10]);
            assert_eq!((sum(read), sum(written)), (7 * SIZE, 9 * SIZE));
        }
    }
}
