//! Letting go of what was read from files by mapping them into memory.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "calls of the C library without a safe wrapper"))]

use std::path::Path;

/// Lets go of the pages of `file`, and of others beside it, that are mapped for reading alone. OpenVINO reads weights so, makes its own of
/// them, and keeps the file mapped; what it has read counts as memory of the process, for each session once the weights. Who needs a page
/// again gets it from the system, which keeps it as long as it has no better use for the memory.
pub(super) fn let_go_of_mapped(file: &Path) {
    #[cfg(target_os = "linux")]
    linux::let_go_of_mapped(file);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::read_to_string;
    use std::ops::Range;
    use std::path::Path;

    pub(super) fn let_go_of_mapped(file: &Path) {
        // The list names what links lead to.
        let Ok(file) = file.canonicalize() else { return };
        let (Some(folder), Ok(mappings)) = (file.parent(), read_to_string("/proc/self/maps")) else { return };
        for pages in mappings.lines().filter_map(|line| read_only(line, folder)) {
            // SAFETY: whether the pages are in memory shows nobody who reads them; and nobody has written to them, so none is lost.
            unsafe { libc::madvise(pages.start as *mut libc::c_void, pages.len(), libc::MADV_DONTNEED) };
        }
    }

    /// The addresses of a line of `/proc/self/maps`, if a file in `folder` is mapped there, for reading alone.
    fn read_only(line: &str, folder: &Path) -> Option<Range<usize>> {
        // Spaces are part of a name.
        let (fields, name) = line.split_once('/')?;
        let mut fields = fields.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_read_only = matches!(fields.next()?, "r--p" | "r--s");
        let name = format!("/{name}");
        if !is_read_only || Path::new(&name).parent() != Some(folder) {
            return None;
        }
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(address(start)?..address(end)?)
    }

    #[cfg(test)]
    mod tests {
        use std::fs::File;
        use std::os::fd::AsRawFd;

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
            let [graph, weights] = ["a graph.onnx", "weights"].map(|name| folder.path().join(name));
            for file in [&graph, &weights] {
                std::fs::write(file, vec![7; SIZE]).unwrap();
            }
            let read = map(&weights, libc::PROT_READ);
            let written = map(&graph, libc::PROT_READ | libc::PROT_WRITE);
            written.fill(9);
            let sum = |bytes: &[u8]| bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>();
            assert_eq!(sum(read), 7 * SIZE);
            assert_eq!((resident(read), resident(written)), (SIZE >> 10, SIZE >> 10));
            let link = folder.path().join("link");
            std::fs::create_dir(&link).unwrap();
            std::os::unix::fs::symlink(&graph, link.join("model.onnx")).unwrap();
            let_go_of_mapped(&link.join("model.onnx"));
            assert_eq!((resident(read), resident(written)), (0, SIZE >> 10));
            assert_eq!((sum(read), sum(written)), (7 * SIZE, 9 * SIZE));
        }
    }
}
