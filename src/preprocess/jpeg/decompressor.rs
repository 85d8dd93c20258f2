//! libjpeg-turbo's decompressor, which decodes part of a picture; the safe wrapper decodes whole ones only.
#![expect(unsafe_code, reason = "calls of a C library")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

use turbojpeg::{PixelFormat, ScalingFactor, raw};

use super::MAX_SCANS;

/// A JPEG whose header has been read.
pub(super) struct Decompressor<'b> {
    handle: Handle,
    bytes: &'b [u8],
    pub(super) header: Header,
}

/// What a header says.
pub(super) struct Header {
    /// Width and height, in pixels.
    pub(super) size: (usize, usize),
    /// Width of the blocks that a picture can be cut at, in pixels, if it can be cut.
    pub(super) block: Option<usize>,
    pub(super) is_lossless: bool,
    /// Is it stored as inks, CMYK or YCCK?
    pub(super) has_inks: bool,
}

/// Part of a picture, in pixels.
pub(super) struct Region {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl<'b> Decompressor<'b> {
    /// Reads the header of `bytes`.
    ///
    /// # Errors
    /// What the library says, be it a warning.
    pub(super) fn read(bytes: &'b [u8]) -> Result<Self, String> {
        let handle = Handle::new()?;
        // SAFETY: the library reads as many bytes as there are.
        handle.check(unsafe {
            raw::tj3DecompressHeader(handle.0.as_ptr(), bytes.as_ptr(), bytes.len() as raw::size_t)
        })?;
        let side = |parameter| usize::try_from(handle.get(parameter)).map_err(|_| "Invalid size".to_owned());
        let size = (side(raw::TJPARAM_TJPARAM_JPEGWIDTH)?, side(raw::TJPARAM_TJPARAM_JPEGHEIGHT)?);
        let is_lossless = handle.get(raw::TJPARAM_TJPARAM_LOSSLESS) != 0;
        // The library's tjMCUWidth, which is no symbol of it.
        let block = match handle.get(raw::TJPARAM_TJPARAM_SUBSAMP) {
            _ if is_lossless => None,
            raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_440 | raw::TJSAMP_TJSAMP_441 | raw::TJSAMP_TJSAMP_GRAY => {
                Some(8)
            }
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        };
        let colors = handle.get(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS;
        let has_inks = matches!(colors, raw::TJCS_TJCS_CMYK | raw::TJCS_TJCS_YCCK);
        Ok(Self { handle, bytes, header: Header { size, block, is_lossless, has_inks } })
    }

    /// Decodes the `region` of the picture at `scale` into `pixels`, row by row, which it fills. Its left side has to be a multiple of
    /// the block's width at that scale.
    ///
    /// # Errors
    /// What the library says, be it a warning after which all pixels are there.
    pub(super) fn decompress(
        self,
        scale: ScalingFactor,
        region: &Region,
        format: PixelFormat,
        pixels: &mut [u8],
    ) -> Result<(), String> {
        let Self { handle, bytes, header } = self;
        let whole = (scale.scale(header.size.0), scale.scale(header.size.1));
        let fits = region.left + region.width <= whole.0 && region.top + region.height <= whole.1;
        if !fits || pixels.len() != region.width * region.height * format.size() {
            return Err("Invalid region".to_owned());
        }
        let number = |length: usize| c_int::try_from(length).map_err(|_| "Too large".to_owned());
        let factor = raw::tjscalingfactor { num: number(scale.num())?, denom: number(scale.denom())? };
        let cropping = raw::tjregion {
            x: number(region.left)?,
            y: number(region.top)?,
            w: number(region.width)?,
            h: number(region.height)?,
        };
        let pitch = number(region.width * format.size())?;
        // SAFETY: the handle is one of decompression. The library writes the region's rows, each `pitch` bytes long, as it was told the
        // region and has checked that it lies in the picture; `pixels` is as large. It reads the bytes whose header it has read.
        unsafe {
            handle.check(raw::tj3SetScalingFactor(handle.0.as_ptr(), factor))?;
            if (region.width, region.height) != whole {
                handle.check(raw::tj3SetCroppingRegion(handle.0.as_ptr(), cropping))?;
            }
            handle.check(raw::tj3Decompress8(
                handle.0.as_ptr(),
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                pixels.as_mut_ptr(),
                pitch,
                format as c_int,
            ))
        }
    }
}

/// The library's state of one decompression.
struct Handle(NonNull<c_void>);

impl Handle {
    fn new() -> Result<Self, String> {
        // SAFETY: no condition is attached to this call.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle = NonNull::new(handle).map(Self).ok_or_else(|| "Out of memory".to_owned())?;
        // SAFETY: the handle is valid.
        let limited =
            unsafe { raw::tj3Set(handle.0.as_ptr(), raw::TJPARAM_TJPARAM_SCANLIMIT as c_int, MAX_SCANS as c_int) };
        handle.check(limited)?;
        Ok(handle)
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is valid for as long as `self` lives.
        unsafe { raw::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    /// Takes a call's result for what it is.
    fn check(&self, result: c_int) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the text belongs to the handle, ends with a zero, and is copied before the next call.
        let message = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0.as_ptr())) };
        Err(message.to_string_lossy().into_owned())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and used no more.
        unsafe { raw::tj3Destroy(self.0.as_ptr()) }
    }
}
