"""EfficientNet-Lite as an ONNX graph, from a PyTorch state dictionary and without PyTorch."""

import collections
import io
import math
import pickle

import numpy as np
from graph import Graph
from onnx import TensorProto

# Of the seven stages: blocks at depth 1, and the first block's stride.
REPEATS = (1, 2, 2, 3, 3, 4, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
BATCH_NORM_EPSILON = 1e-3

# Depth and side of the input in pixels; the width can be seen from the weights.
VARIANTS = {"efficientnet-lite0": (1.0, 224), "efficientnet-lite1": (1.1, 240), "efficientnet-lite2": (1.2, 260)}

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

Tensor = collections.namedtuple("Tensor", "storage offset shape strides")
Storage = collections.namedtuple("Storage", "dtype key")


class StateUnpickler(pickle.Unpickler):
    """Reads a state dictionary and nothing else: a pickle may name any function, so all but these four are refused."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
            storage, offset, shape, strides
        ),
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the weights ask for {module}.{name}, which no state dictionary needs")
        return self.ALLOWED[module, name]

    def persistent_load(self, identifier):
        _, dtype, key, *_ = identifier
        return Storage(dtype, key)


def read_state(content):
    """The arrays of a state dictionary in PyTorch's legacy format: five pickles, then the raw storages."""
    stream = io.BytesIO(content)
    magic, _protocol, _system, tensors, keys = (StateUnpickler(stream).load() for _ in range(5))
    if magic != LEGACY_MAGIC:
        raise pickle.UnpicklingError("the weights are not in PyTorch's legacy format")
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key])
    return {name: as_array(tensor, storages) for name, tensor in tensors.items()}


def as_array(tensor, storages):
    values = storages[tensor.storage.key]
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides))
    if not 0 <= tensor.offset <= last < len(values):
        raise pickle.UnpicklingError("a tensor reaches past its storage")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)


class Converter:
    """Adds an EfficientNet-Lite to a graph, keeping track of the image's side as padding depends on it."""

    def __init__(self, graph, state, variant):
        self.graph = graph
        self.state = state
        self.depth, self.side = VARIANTS[variant]
        self.bounds = [graph.weight(np.float32(0), "relu6_low"), graph.weight(np.float32(6), "relu6_high")]

    def logits(self, pixels):
        """Adds the whole network; returns the name of its output."""
        hidden = self.relu6(self.convolution(pixels, "_conv_stem", "_bn0", stride=2))
        for index, stride in enumerate(self.block_strides()):
            hidden = self.block(hidden, f"_blocks.{index}.", stride)
        hidden = self.relu6(self.convolution(hidden, "_conv_head", "_bn1"))
        pooled = self.graph.add("Flatten", self.graph.add("GlobalAveragePool", hidden), axis=1)
        weight, bias = (self.graph.weight(self.state[f"_fc.{name}"], f"_fc.{name}") for name in ("weight", "bias"))
        return self.graph.add("Gemm", pooled, weight, bias, transB=1)

    def block_strides(self):
        """The stride of each block. The first and the last stage are not deepened in the Lite family."""
        for stage, (repeats, stride) in enumerate(zip(REPEATS, STRIDES)):
            if 0 < stage < len(REPEATS) - 1:
                repeats = math.ceil(repeats * self.depth)
            yield from [stride] + [1] * (repeats - 1)

    def block(self, block_input, prefix, stride):
        hidden = block_input
        if f"{prefix}_expand_conv.weight" in self.state:
            hidden = self.relu6(self.convolution(hidden, f"{prefix}_expand_conv", f"{prefix}_bn0"))
        depthwise = f"{prefix}_depthwise_conv"
        channels_in = self.channels(f"{prefix}_expand_conv", depthwise)
        hidden = self.relu6(self.convolution(hidden, depthwise, f"{prefix}_bn1", stride, depthwise=True))
        hidden = self.convolution(hidden, f"{prefix}_project_conv", f"{prefix}_bn2")
        channels_out = self.state[f"{prefix}_project_conv.weight"].shape[0]
        return self.graph.add("Add", hidden, block_input) if (stride, channels_in) == (1, channels_out) else hidden

    def channels(self, expand, depthwise):
        """How many channels enter a block."""
        weight = self.state.get(f"{expand}.weight")
        return self.state[f"{depthwise}.weight"].shape[0] if weight is None else weight.shape[1]

    def convolution(self, hidden, name, norm, stride=1, depthwise=False):
        """Adds a convolution with its batch normalisation folded in."""
        weight = self.state[f"{name}.weight"].astype(np.float64)
        gamma, beta, mean, variance = (
            self.state[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = weight.shape[2]
        # As TensorFlow pads: just enough, and the odd pixel at the bottom and right.
        side_out = math.ceil(self.side / stride)
        padding = max((side_out - 1) * stride + kernel - self.side, 0)
        before, after = padding // 2, padding - padding // 2
        self.side = side_out
        return self.graph.add(
            "Conv",
            hidden,
            self.graph.weight(weight * scale[:, None, None, None], f"{name}.weight"),
            self.graph.weight(beta - mean * scale, f"{name}.bias"),
            group=weight.shape[0] if depthwise else 1,
            kernel_shape=[kernel, kernel],
            pads=[before, before, after, after],
            strides=[stride, stride],
        )

    def relu6(self, hidden):
        return self.graph.add("Clip", hidden, *self.bounds)


def classifier(state, variant):
    """The ONNX model from `pixel_values` to `logits`."""
    graph = Graph(variant)
    logits = Converter(graph, state, variant).logits("pixel_values")
    return graph.model([pixel_values(variant)], {"logits": (logits, ["batch", len(state["_fc.bias"])])})


def pixel_values(variant):
    """The input of a model's graph."""
    side = VARIANTS[variant][1]
    return "pixel_values", TensorProto.FLOAT, ["batch", 3, side, side]
