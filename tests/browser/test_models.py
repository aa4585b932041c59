"""The export with which pages are tested equals PyTorch's, except for the values of the weights."""

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper

from bench.dashboard.models import EXPORT, mobilenet_v2
from bench.exports import GOLDEN
from graph.formats.onnx.reader import read
from profiler.counting.counts import profile

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")


def outline(model: onnx.ModelProto) -> dict[str, Any]:
    """Return a model's content without the values and the order of its weights."""

    def attribute(value: Any) -> Any:
        return numpy_helper.to_array(value).tolist() if isinstance(value, onnx.TensorProto) else value

    nodes = [
        (n.name, n.op_type, *n.input, *n.output, {a.name: attribute(helper.get_attribute_value(a)) for a in n.attribute})
        for n in model.graph.node
    ]
    weights = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer}
    ports = [port.SerializeToString() for port in (*model.graph.input, *model.graph.output)]
    return {"nodes": nodes, "weights": weights, "ports": ports, "opset": model.opset_import[0].version}


def test_it_costs_what_the_architecture_costs() -> None:
    counted = profile(read(mobilenet_v2()))
    assert (counted.macs, counted.params, counted.initializer_elements) == GOLDEN[EXPORT]


@pytest.mark.exports
@pytest.mark.skipif(not FOLDER, reason="EDGEWISE_EXPORTS names no folder of exported models")
def test_it_is_what_pytorch_exports() -> None:
    assert outline(onnx.load_from_string(mobilenet_v2())) == outline(onnx.load(Path(FOLDER) / f"{EXPORT}.onnx"))
