"""Writing an ONNX graph node by node."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# What goes with opset 17; newer numbers are refused by older runtimes.
IR_VERSION = 8


class Graph:
    """Nodes and weights in the making. Methods that add a node return the name of its output."""

    def __init__(self, name):
        self.name = name
        self.nodes = []
        self.weights = []

    def weight(self, array, name):
        """Adds a constant; 64-bit floats become 32-bit."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" else np.int64)
        self.weights.append(numpy_helper.from_array(array.reshape(array.shape), name))
        return name

    def add(self, operator, *inputs, outputs=1, **attributes):
        """Adds a node. A list of names is returned if it has several outputs."""
        name = f"{operator}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, inputs, outputs):
        """The finished model; `inputs` are (name, kind, shape), `outputs` map the wanted name to (name, shape)."""
        renamed = {made: wanted for wanted, (made, _) in outputs.items()}
        for node in self.nodes:
            node.output[:] = [renamed.get(name, name) for name in node.output]
            node.input[:] = [renamed.get(name, name) for name in node.input]
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ocelli"
        )
        onnx.checker.check_model(model, full_check=True)
        return model
