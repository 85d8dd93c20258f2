//! Moving weights and activations into huge pages. A graph reads all its weights in every run, and with pages of 4 KiB the processor
//! spends 2 to 5 % of that (measured on a shared Xeon, docs/scaling.md) on finding out where they are.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "calls of the C library without a safe wrapper"))]

/// Moves what the process has allocated by the megabyte into huge pages, where the system (Linux 6.1 or newer) has them and its
/// administrator has not switched them off. Takes about a second for a gigabyte, in which other threads go on; what has been
/// moved before costs next to nothing. Returns how many bytes are in huge pages by this.
pub fn use_huge_pages() -> usize {
    #[cfg(target_os = "linux")]
    return linux::use_huge_pages();
    #[cfg(not(target_os = "linux"))]
    return 0;
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::read_to_string;
    use std::ops::Range;

    use super::super::mappings::Mapping;

    const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

    pub(super) fn use_huge_pages() -> usize {
        let Some(huge) = huge_page_size() else { return 0 };
        memory().iter().for_each(bind_nowhere);
        let blocks = memory().into_iter().flat_map(|mapping| blocks(&mapping, huge));
        blocks.filter(|&block| is_filled(block, huge) && collapse(block, huge)).count() * huge
    }

    /// Where what was allocated lies.
    fn memory() -> Vec<Range<usize>> {
        let mappings = read_to_string("/proc/self/maps").unwrap_or_default();
        mappings.lines().filter_map(private_memory).collect()
    }

    /// Undoes that memory is bound to a NUMA node. OpenVINO binds each of its weights by itself, so that what lies side by side is no single
    /// mapping, and no huge page fits into one of 2 MB or less: of 750 MB of CLIP B/32, 340 stayed in small pages. Pages stay where they are, and a
    /// huge page is made on the node on which most of them lie.
    fn bind_nowhere(mapping: &Range<usize>) {
        let nodes = std::ptr::null::<libc::c_ulong>();
        // SAFETY: where pages come from changes no contents, also if other memory has come to lie there meanwhile. Where containers are not
        // allowed it, neither is OpenVINO.
        unsafe { libc::syscall(libc::SYS_mbind, mapping.start, mapping.len(), libc::MPOL_DEFAULT, nodes, 0, 0) };
    }

    /// `None`: the system has none, or they are switched off, which an advice would override.
    fn huge_page_size() -> Option<usize> {
        if read_to_string(format!("{SETTINGS}/enabled")).ok()?.contains("[never]") {
            return None;
        }
        read_to_string(format!("{SETTINGS}/hpage_pmd_size")).ok()?.trim().parse().ok()
    }

    /// The addresses of a line of `/proc/self/maps`, if memory that was allocated lies there: not a file, nor a stack.
    fn private_memory(line: &str) -> Option<Range<usize>> {
        let Mapping { addresses, permissions, name } = Mapping::parse(line)?;
        (permissions == "rw-p" && matches!(name, "" | "[heap]")).then_some(addresses)
    }

    /// The first addresses of the huge pages that fit in.
    fn blocks(mapping: &Range<usize>, huge: usize) -> impl Iterator<Item = usize> + use<> {
        let end = mapping.end;
        (mapping.start.next_multiple_of(huge)..end).step_by(huge).filter(move |block| end - block >= huge)
    }

    /// Is nearly all of it in memory? A huge page takes its whole size, which thread stacks, say, would never use.
    fn is_filled(block: usize, huge: usize) -> bool {
        // SAFETY: sysconf only tells a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let pages = huge / usize::try_from(page).unwrap_or(4096).max(1);
        let mut resident = vec![0_u8; pages];
        // SAFETY: mincore writes one byte for each page of the block, for which there is room. It fails where nothing is mapped.
        let outcome = unsafe { libc::mincore(block as *mut libc::c_void, huge, resident.as_mut_ptr()) };
        let filled = resident.iter().filter(|&&page| page & 1 == 1).count();
        outcome == 0 && filled * 8 >= pages * 7
    }

    fn collapse(block: usize, huge: usize) -> bool {
        // SAFETY: the advice changes no contents, also if other memory has come to lie there meanwhile.
        unsafe { libc::madvise(block as *mut libc::c_void, huge, libc::MADV_COLLAPSE) == 0 }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn memory_is_told_from_files_stacks_and_what_may_not_be_written() {
            let allocated = "7f2c38000000-7f2c3c021000 rw-p 00000000 00:00 0 ";
            assert_eq!(private_memory(allocated), Some(0x7f2c_3800_0000..0x7f2c_3c02_1000));
            let heap = "55d0c0a00000-55d0c1400000 rw-p 00000000 00:00 0                          [heap]";
            assert_eq!(private_memory(heap), Some(0x55d0_c0a0_0000..0x55d0_c140_0000));
            for other in [
                "7f2c3c021000-7f2c40000000 ---p 00000000 00:00 0 ",
                "7f2c3c021000-7f2c40000000 rw-s 00000000 00:01 3 /dev/zero (deleted)",
                "55d0be000000-55d0be200000 rw-p 00a00000 08:01 1835 /usr/bin/ocelli",
                "7ffd3a600000-7ffd3ae00000 rw-p 00000000 00:00 0                          [stack]",
                "",
            ] {
                assert_eq!(private_memory(other), None, "{other}");
            }
        }

        #[test]
        fn huge_pages_lie_at_multiples_of_their_size_and_wholly_within() {
            assert_eq!(blocks(&(10..40), 10).collect::<Vec<_>>(), [10, 20, 30]);
            assert_eq!(blocks(&(11..39), 10).collect::<Vec<_>>(), [20]);
            assert_eq!(blocks(&(11..29), 10).count(), 0);
        }

        #[test]
        fn memory_that_was_bound_piece_by_piece_is_one_mapping_again() {
            const PIECE: usize = 1 << 20;
            let written = vec![7_u8; 16 * PIECE];
            let start = (written.as_ptr() as usize).next_multiple_of(PIECE);
            let pieces =
                || memory().into_iter().filter(|mapping| (start..start + 12 * PIECE).contains(&mapping.start)).count();
            let node: libc::c_ulong = 1;
            for index in (0..12).step_by(2) {
                let (piece, nodes, bits) = (start + index * PIECE, &raw const node, libc::c_ulong::BITS);
                // SAFETY: as in `bind_nowhere`. Where it is not allowed, pieces stay together.
                unsafe { libc::syscall(libc::SYS_mbind, piece, PIECE, libc::MPOL_BIND, nodes, bits, 0) };
            }
            let bound = pieces();
            memory().iter().for_each(bind_nowhere);
            assert!(pieces() <= 1 && [0, 1, 12].contains(&bound), "{} of {bound}", pieces());
            assert!(written.iter().all(|&byte| byte == 7));
        }

        #[test]
        fn what_is_moved_keeps_its_contents_and_what_was_never_written_is_left_alone() {
            const HUGE: usize = 2 << 20;
            let written: Vec<u8> = (0..8 * HUGE).map(|index| (index % 251) as u8).collect();
            let untouched: Vec<u8> = Vec::with_capacity(8 * HUGE);
            let of = |memory: &Vec<u8>| memory.as_ptr() as usize..memory.as_ptr() as usize + memory.capacity();
            assert!(blocks(&of(&written), HUGE).all(|block| is_filled(block, HUGE)));
            assert!(!blocks(&of(&untouched), HUGE).any(|block| is_filled(block, HUGE)));
            use_huge_pages();
            assert!(!blocks(&of(&untouched), HUGE).any(|block| is_filled(block, HUGE)));
            assert!(written.iter().enumerate().all(|(index, &byte)| byte == (index % 251) as u8));
        }
    }
}
