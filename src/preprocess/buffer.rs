//! Memory for what one picture is decoded and resized in, kept by each thread for the next one.

use std::cell::RefCell;

/// Pictures that took more are given back to the system: this times the threads that decode is what keeping may cost.
const MOST_KEPT: usize = 12 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// `length` bytes of any value.
pub(super) fn take(length: usize) -> Vec<u8> {
    let kept = KEPT.with_borrow_mut(|kept| {
        let large_enough = kept.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= length);
        let smallest = large_enough.min_by_key(|(_, buffer)| buffer.capacity())?.0;
        Some(kept.swap_remove(smallest))
    });
    // None is grown: what it holds is of no use.
    let Some(mut buffer) = kept else { return vec![0; length] };
    buffer.resize(length, 0);
    buffer
}

/// Keeps `buffer` for this thread's next picture.
pub(super) fn give_back(buffer: Vec<u8>) {
    KEPT.with_borrow_mut(|kept| {
        kept.push(buffer);
        // The smaller ones are what most pictures take.
        kept.sort_unstable_by_key(Vec::capacity);
        let mut sum = 0;
        kept.retain(|buffer| {
            sum += buffer.capacity();
            sum <= MOST_KEPT
        });
        // A picture takes its pixels, its planes, its data and its resized rows.
        kept.drain(..kept.len().saturating_sub(4));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_where_they_are_large_enough_unless_they_are_too_large_to_keep() {
        let (small, large) = (take(900), take(2000));
        let places = [&small, &large].map(|buffer| buffer.as_ptr());
        give_back(large);
        give_back(small);
        let again = take(1000);
        assert_eq!((again.as_ptr(), again.len()), (places[1], 1000));
        let again = take(800);
        assert_eq!((again.as_ptr(), again.len()), (places[0], 800));
        give_back(vec![0; MOST_KEPT + 1]);
        assert!(KEPT.take().is_empty());
    }

    #[test]
    fn no_more_are_kept_than_a_picture_takes() {
        (1..7).for_each(|length| give_back(vec![0; length]));
        assert_eq!(KEPT.take().iter().map(Vec::len).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
