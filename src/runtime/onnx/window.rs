//! Windows of convolutions and pools over feature maps.

use std::io;

use super::graph::Node;

/// The window of a convolution or pool: sizes along `[height, width]`.
pub(in crate::runtime) struct Window {
    pub(in crate::runtime) kernel: [u64; 2],
    pub(in crate::runtime) strides: [u64; 2],
    dilations: [u64; 2],
    /// Zeros before the map.
    pub(in crate::runtime) before: [u64; 2],
    /// Zeros after the map.
    pub(in crate::runtime) after: [u64; 2],
    /// Parts of the channels, each of which is convolved by itself.
    pub(in crate::runtime) groups: u64,
}

impl Window {
    /// That of `node`, if all about it is told in numbers.
    pub(in crate::runtime) fn of(node: &Node) -> io::Result<Option<Self>> {
        let attributes = node.integers()?;
        let pair = |name: &str, default| match attributes.get(name).map(Vec::as_slice) {
            Some(&[height, width]) => Some([height, width]),
            Some(_) => None,
            None => default,
        };
        let pads = match attributes.get("pads").map(Vec::as_slice) {
            Some(&[top, left, bottom, right]) => Some(([top, left], [bottom, right])),
            Some(_) => None,
            None => Some(([0; 2], [0; 2])),
        };
        let is_plain = !attributes.contains_key("auto_pad")
            && attributes.get("ceil_mode").is_none_or(|mode| mode.iter().all(|&mode| mode == 0));
        let groups = attributes.get("group").and_then(|group| group.first()).copied().unwrap_or(1);
        let window = || {
            let (before, after) = pads?;
            let (kernel, strides) = (pair("kernel_shape", None)?, pair("strides", Some([1; 2]))?);
            let dilations = pair("dilations", Some([1; 2]))?;
            (!strides.contains(&0)).then_some(Self { kernel, strides, dilations, before, after, groups })
        };
        Ok(window().filter(|_| is_plain))
    }

    /// Does it meet all pixels within it, and all channels of each?
    pub(in crate::runtime) fn is_dense(&self) -> bool {
        self.dilations == [1; 2] && self.groups == 1
    }

    /// Does it meet one pixel at a time, of none but those of the map?
    pub(in crate::runtime) fn is_of_one_pixel(&self) -> bool {
        self.kernel == [1; 2] && self.before == [0; 2] && self.after == [0; 2]
    }

    /// The size of what it makes of `size` pixels along `axis`, 0 for height and 1 for width; `None` if it does not fit in.
    pub(in crate::runtime) fn output(&self, axis: usize, size: u64) -> Option<u64> {
        let reach = (self.kernel[axis].checked_sub(1)?).checked_mul(self.dilations[axis])?.checked_add(1)?;
        let padded = size.checked_add(self.before[axis])?.checked_add(self.after[axis])?;
        Some(padded.checked_sub(reach)? / self.strides[axis] + 1)
    }
}
