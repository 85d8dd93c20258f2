"""A zero-shot classifier out of a classifier and a sentence encoder: ConSE (Norouzi et al., ICLR 2014).

An image's embedding is the sum of the embeddings of the classifier's ten best classes, weighted by their
probabilities; a label's embedding is the sentence encoder's. So there are two graphs, as of CLIP, and no weights beyond
those of the two models.
"""

import json
import math

import efficientnet
import numpy as np
from graph import Graph
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tokenizers import Tokenizer

CLASSES_MIXED = 10
# The factor between cosines and logits. With 40, scores are as sure as they are right (on crops of photos, 16 labels).
LOGIT_SCALE = 40.0


def vision_model(state, variant, class_embeddings):
    """The ONNX model from `pixel_values` to `image_embeds`."""
    graph = Graph("conse-vision")
    logits = efficientnet.Converter(graph, state, variant).logits("pixel_values")
    probabilities = graph.add("Softmax", logits, axis=-1)
    count = graph.weight(np.array([CLASSES_MIXED]), "classes_mixed")
    best, indices = graph.add("TopK", probabilities, count, outputs=2, axis=-1)
    embeddings = graph.add("Gather", graph.weight(class_embeddings, "class_embeddings"), indices, axis=0)
    row = graph.add("Unsqueeze", best, graph.weight(np.array([1]), "row_axis"))
    mixed = graph.add("Squeeze", graph.add("MatMul", row, embeddings), "row_axis")
    outputs = {"image_embeds": (mixed, ["batch", class_embeddings.shape[1]])}
    return graph.model([efficientnet.pixel_values(variant)], outputs)


class TextEncoder:
    """A BERT with mean pooling, as an ONNX model from `input_ids` and `attention_mask` to `text_embeds`."""

    def __init__(self, config, safetensors, tokenizer):
        self.config = config
        self.weights = read_safetensors(safetensors)
        self.tokenizer = Tokenizer.from_buffer(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.graph = Graph("conse-text")
        self.model = self.build()

    def embed(self, texts):
        """The embeddings of `texts`, of length 1."""
        run = ReferenceEvaluator(self.model, new_ops=[Erf, MatMul]).run
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        embeddings = np.empty((len(texts), self.config["hidden_size"]), np.float32)
        # Texts of one length go together, so that there is no padding.
        for length in sorted(set(map(len, ids))):
            rows = [index for index, row in enumerate(ids) if len(row) == length]
            input_ids = np.array([ids[row] for row in rows])
            (embeddings[rows],) = run(None, {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def build(self):
        mask = self.graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        # 0 where attention may go and a large negative number where there is padding, for each head and query.
        bias = self.graph.add("Unsqueeze", mask, self.constant("head_axes", [1, 2]))
        bias = self.graph.add("Sub", self.constant("one", 1.0), bias)
        bias = self.graph.add("Mul", bias, self.constant("masked", -10000.0))
        hidden = self.embeddings()
        for index in range(self.config["num_hidden_layers"]):
            hidden = self.layer(hidden, bias, f"encoder.layer.{index}.")
        inputs = [(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
        return self.graph.model(
            inputs, {"text_embeds": (self.mean(hidden, mask), ["batch", self.config["hidden_size"]])}
        )

    def embeddings(self):
        words = self.graph.add("Gather", self.parameter("embeddings.word_embeddings.weight"), "input_ids")
        # All tokens are of type 0, whose embedding is added to the positions' once and for all.
        positions = self.weights["embeddings.position_embeddings.weight"]
        positions = positions + self.weights["embeddings.token_type_embeddings.weight"][0]
        length = self.graph.add("Shape", "input_ids", start=1, end=2)
        table = self.constant("position_embeddings", positions)
        positions = self.graph.add(
            "Slice", table, self.constant("first", [0]), length, self.constant("position_axis", [0])
        )
        return self.norm(self.graph.add("Add", words, positions), "embeddings.LayerNorm")

    def layer(self, hidden, bias, prefix):
        attended = self.linear(
            self.attention(hidden, bias, f"{prefix}attention.self."), f"{prefix}attention.output.dense"
        )
        hidden = self.norm(self.graph.add("Add", attended, hidden), f"{prefix}attention.output.LayerNorm")
        inner = self.gelu(self.linear(hidden, f"{prefix}intermediate.dense"))
        outer = self.linear(inner, f"{prefix}output.dense")
        return self.norm(self.graph.add("Add", outer, hidden), f"{prefix}output.LayerNorm")

    def attention(self, hidden, bias, prefix):
        heads = self.config["num_attention_heads"]
        size = self.config["hidden_size"] // heads
        split = self.constant("split_heads", [0, 0, heads, size])

        def projected(name, order):
            by_head = self.graph.add("Reshape", self.linear(hidden, prefix + name), split)
            return self.graph.add("Transpose", by_head, perm=order)

        scores = self.graph.add("MatMul", projected("query", [0, 2, 1, 3]), projected("key", [0, 2, 3, 1]))
        scores = self.graph.add("Div", scores, self.constant("scale", math.sqrt(size)))
        weights = self.graph.add("Softmax", self.graph.add("Add", scores, bias), axis=-1)
        mixed = self.graph.add("MatMul", weights, projected("value", [0, 2, 1, 3]))
        mixed = self.graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.graph.add("Reshape", mixed, self.constant("join_heads", [0, 0, heads * size]))

    def gelu(self, hidden):
        inner = self.graph.add("Div", hidden, self.constant("root_of_two", math.sqrt(2)))
        inner = self.graph.add("Add", self.graph.add("Erf", inner), self.constant("one", 1.0))
        return self.graph.add("Mul", self.graph.add("Mul", hidden, inner), self.constant("half", 0.5))

    def linear(self, hidden, name):
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return self.graph.add("Add", self.graph.add("MatMul", hidden, weight), self.parameter(f"{name}.bias"))

    def norm(self, hidden, name):
        parameters = (self.parameter(f"{name}.{part}") for part in ("weight", "bias"))
        return self.graph.add("LayerNormalization", hidden, *parameters, axis=-1, epsilon=self.config["layer_norm_eps"])

    def mean(self, hidden, mask):
        """The mean of the tokens that are no padding."""
        last, tokens = self.constant("last_axis", [-1]), self.constant("token_axis", [1])
        mask = self.graph.add("Unsqueeze", mask, last)
        total = self.graph.add("ReduceSum", self.graph.add("Mul", hidden, mask), tokens, keepdims=0)
        return self.graph.add("Div", total, self.graph.add("ReduceSum", mask, tokens, keepdims=0))

    def parameter(self, name):
        return self.constant(name, self.weights[name])

    def constant(self, name, value):
        """Adds a constant the first time that its name occurs."""
        if all(weight.name != name for weight in self.graph.weights):
            self.graph.weight(np.asarray(value), name)
        return name


class Erf(OpRun):
    """onnx's own calls math.erf for each number. This is Abramowitz and Stegun's formula 7.1.26, within 2e-7."""

    op_domain = ""

    def _run(self, x):
        t = 1 / (1 + 0.3275911 * np.abs(x))
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        return ((np.sign(x) * (1 - series * np.exp(-x * x))).astype(x.dtype),)


class MatMul(OpRun):
    """onnx's own has numpy multiply the rows of a batch one by one, which is twenty times slower than all at once."""

    op_domain = ""

    def _run(self, a, b):
        if b.ndim != 2:
            return (np.matmul(a, b),)
        return (np.matmul(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], -1),)


def read_safetensors(content):
    """The 32-bit arrays of a safetensors file: a length, a JSON header, then the arrays as they are."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    arrays = {}
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            begin, end = (8 + size + offset for offset in tensor["data_offsets"])
            arrays[name] = np.frombuffer(content[begin:end], "<f4").reshape(tensor["shape"])
    return arrays
