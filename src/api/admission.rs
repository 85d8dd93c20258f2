//! Admission: how many images and how many bytes the server holds at a time.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::config::{Limits, usable_cores};

/// The server's capacity. Who gets none is told so at once: there is no queue in front of the queues.
pub struct Admission {
    images: Arc<Semaphore>,
    max_images: usize,
    bytes: Arc<Semaphore>,
    max_bytes: usize,
    cores: usize,
}

impl Admission {
    /// As much as `limits` allow; `preprocess_threads` decode.
    pub fn new(limits: &Limits, preprocess_threads: usize) -> Self {
        let max_bytes = limits.max_buffered_bytes.min(Semaphore::MAX_PERMITS);
        let max_images = limits.max_in_flight.min(Semaphore::MAX_PERMITS);
        Self {
            images: Arc::new(Semaphore::new(max_images)),
            max_images,
            bytes: Arc::new(Semaphore::new(max_bytes)),
            max_bytes,
            cores: usable_cores().min(preprocess_threads),
        }
    }

    /// Room for `images` images.
    ///
    /// # Errors
    /// 429 if there is none.
    pub fn admit(&self, images: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let wanted = u32::try_from(images).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.images).try_acquire_many_owned(wanted);
        permit.map_err(|_| ApiError::overloaded(format!("{} images are in work, as many as may be", self.max_images)))
    }

    /// Room for the bytes of a body, to be filled chunk by chunk; about `length` are expected. Memory is only taken by what comes.
    pub fn buffer(&self, length: usize) -> BodyBuffer {
        BodyBuffer { data: Vec::with_capacity(length), room: None, bytes: Arc::clone(&self.bytes) }
    }

    /// Images in work.
    pub fn images_in_flight(&self) -> usize {
        self.max_images - self.images.available_permits()
    }

    /// Cores that each of the images in work can have to itself, at least 1.
    pub fn cores_per_image(&self) -> usize {
        (self.cores / self.images_in_flight().max(1)).max(1)
    }

    /// Bytes of bodies held.
    pub fn bytes_buffered(&self) -> usize {
        self.max_bytes - self.bytes.available_permits()
    }
}

/// A body that grows within the server's capacity.
pub struct BodyBuffer {
    data: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
    bytes: Arc<Semaphore>,
}

impl BodyBuffer {
    /// Takes a chunk.
    ///
    /// # Errors
    /// 429 if the bodies of all requests together are too many bytes.
    pub fn extend(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let full = || ApiError::overloaded("the bodies of the requests in work fill the memory set aside for them");
        let length = u32::try_from(chunk.len()).map_err(|_| full())?;
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(length).map_err(|_| full())?;
        match &mut self.room {
            Some(held) => held.merge(room),
            None => self.room = Some(room),
        }
        self.data.extend_from_slice(chunk);
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// The whole body; its room is given back when the last slice of it is dropped.
    pub fn freeze(self) -> HeldBytes {
        let room = Room { _permit: self.room.map(Arc::new) };
        HeldBytes { bytes: room.hold(self.data), room }
    }
}

/// A body, and the room it takes.
pub struct HeldBytes {
    /// The body.
    pub bytes: Bytes,
    /// Its room.
    pub room: Room,
}

/// The room of a body, given back when the last that is held in it is dropped.
#[derive(Clone)]
pub struct Room {
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Room {
    /// Bytes in this room: the body, or what was made of it and is no more than it was.
    pub fn hold(&self, data: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        struct Held<D> {
            data: D,
            _room: Room,
        }
        impl<D: AsRef<[u8]>> AsRef<[u8]> for Held<D> {
            fn as_ref(&self) -> &[u8] {
                self.data.as_ref()
            }
        }
        Bytes::from_owner(Held { data, _room: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let mut limits = crate::config::Config::default().limits;
        limits.max_in_flight = 3;
        limits.max_buffered_bytes = 10;
        Admission::new(&limits, 1)
    }

    #[test]
    fn images_beyond_the_capacity_are_refused_until_a_permit_is_dropped() {
        let admission = admission();
        let held = admission.admit(2).unwrap();
        assert!(admission.admit(2).is_err());
        assert_eq!(admission.images_in_flight(), 2);
        drop(held);
        assert!(admission.admit(3).is_ok());
    }

    #[test]
    fn images_in_work_share_the_cores() {
        let admission = Admission { cores: 4, ..admission() };
        let shares = (0..3).map(|_| (admission.admit(1).unwrap(), admission.cores_per_image()));
        let (_held, shares): (Vec<_>, Vec<_>) = shares.unzip();
        assert_eq!(shares, [4, 2, 1]);
        assert_eq!(Admission { cores: 1, ..self::admission() }.cores_per_image(), 1);
    }

    #[test]
    fn the_room_of_a_body_is_given_back_with_its_last_slice() {
        let admission = admission();
        let mut buffer = admission.buffer(0);
        buffer.extend(b"12345678").unwrap();
        assert!(buffer.extend(b"abc").is_err());
        let held = buffer.freeze();
        let slice = held.bytes.slice(..2);
        let derived = held.room.hold(vec![1]);
        drop(held);
        assert_eq!(admission.bytes_buffered(), 8);
        drop((slice, derived));
        assert_eq!(admission.bytes_buffered(), 0);
    }
}
