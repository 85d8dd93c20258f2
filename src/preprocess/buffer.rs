//! Memory for the pixels of one picture, kept by each thread for the next one.

use std::cell::Cell;

/// A picture that took more is given back to the system: this times the threads that decode is what keeping may cost.
const LARGEST_KEPT: usize = 8 << 20;

thread_local! {
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `length` bytes of any value.
pub(super) fn take(length: usize) -> Vec<u8> {
    let mut buffer = KEPT.take();
    if buffer.capacity() < length {
        // Not grown: what it holds is of no use.
        return vec![0; length];
    }
    buffer.resize(length, 0);
    buffer
}

/// Keeps `buffer` for this thread's next picture.
pub(super) fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() <= LARGEST_KEPT {
        KEPT.set(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_whatever_the_next_length_unless_it_is_large() {
        let first = take(1000);
        let place = first.as_ptr();
        give_back(first);
        let second = take(900);
        assert_eq!((second.as_ptr(), second.len()), (place, 900));
        give_back(second);
        assert_eq!(take(1000).len(), 1000);
        give_back(vec![0; LARGEST_KEPT + 1]);
        assert_eq!(KEPT.take().capacity(), 0);
    }
}
