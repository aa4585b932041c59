"""com.microsoft's attention with random sizes against ONNX Runtime, in numpy, natively, and over the steps of a decoder."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kernels.registry import evaluate, find
from kernels.spec import Array
from scheduler.session import Session
from tests.kernels.ops.models import one_node_model
from tests.kernels.ops.test_onnxruntime import OPSET, session

GROUPED = "com.microsoft.GroupQueryAttention"
CLOSE = 1e-5


def drawn(rng: np.random.Generator) -> tuple[list[Array | None], dict[str, Any], Array]:
    """Return inputs, attributes and the lengths of all rows: of a prompt, or of steps on a cache that is grown or a buffer."""
    size, kv_heads = int(rng.choice([16, 32])), int(rng.choice([1, 2]))
    heads, kind = kv_heads * int(rng.choice([1, 2, 4])), str(rng.choice(["prompt", "grown", "buffer"]))
    batch = int(rng.choice([1, 2, 3]))
    length = int(rng.integers(1, 6)) if kind == "prompt" else 1 if batch > 1 else int(rng.integers(1, 4))  # as ONNX Runtime asks
    past = 0 if kind == "prompt" else int(rng.integers(1, 9)) + (length + 1) * (kind == "buffer")
    lengths = np.full(batch, past + length)
    if kind == "buffer":
        lengths = rng.integers(length + 1, past + 1, batch)
    elif kind == "grown" and batch > 1:
        lengths[1:] = rng.integers(2, past + length + 1, batch - 1)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs: list[Array | None] = [normal(batch, length, count * size) for count in (heads, kv_heads, kv_heads)]
    inputs += [None if kind == "prompt" else normal(batch, kv_heads, past, size) for _ in range(2)]
    inputs += [(lengths - 1).astype(np.int32), np.array(lengths.max(), np.int32)]
    attrs: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if rng.random() < 0.5:
        inputs += [normal(20, size // 2), normal(20, size // 2)]
        attrs |= {"do_rotary": 1, "rotary_interleaved": int(rng.integers(2))}
    if rng.random() < 0.3:
        attrs["local_window_size"] = int(rng.integers(1, 5))
    if rng.random() < 0.3:
        attrs["softcap"] = 2.0
    return inputs, attrs, lengths


@pytest.mark.parametrize("seed", range(40))
def test_grouped_attention_agrees_with_onnxruntime(seed: int) -> None:
    inputs, attrs, lengths = drawn(np.random.default_rng(seed))
    model = one_node_model("GroupQueryAttention", inputs, 3, attrs, domain="com.microsoft", opset=OPSET)
    wanted = session(model).run(None, {f"x{i}": array for i, array in enumerate(inputs) if array is not None})
    y, keys, values = evaluate(find(GROUPED), inputs, attrs)
    np.testing.assert_allclose(y, wanted[0], atol=CLOSE)
    for made, expected in ((keys, wanted[1]), (values, wanted[2])):
        assert made.shape == expected.shape
        for row, length in enumerate(lengths):  # what lies behind a row's tokens is left open
            np.testing.assert_allclose(made[row, :, :length], expected[row, :, :length], atol=CLOSE)


def decoder() -> onnx.ModelProto:
    """Return a layer of grouped attention whose lengths follow from an attention mask, as exporters of decoders write it."""
    ports = [
        *(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "new", width])
            for name, width in (("q", 64), ("k", 32), ("v", 32))
        ),
        *(helper.make_tensor_value_info(f"past_{name}", TensorProto.FLOAT, ["batch", 2, "past", 16]) for name in "kv"),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "total"]),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["mask", "one"], ["counts"], keepdims=0),
        helper.make_node("Sub", ["counts", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        helper.make_node("Shape", ["mask"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "index"], ["size"]),
        helper.make_node("Cast", ["size"], ["total"], to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_k", "past_v", "seqlens", "total", "cos", "sin"],
            ["y", "present_k", "present_v"],
            domain="com.microsoft",
            num_heads=4,
            kv_num_heads=2,
            do_rotary=1,
        ),
    ]
    angles = np.arange(32)[:, None] / 100 ** (np.arange(8)[None] / 8)
    constants = [("one", np.array([1])), ("index", np.array(1)), ("cos", np.cos(angles)), ("sin", np.sin(angles))]
    tensors = [
        onnx.numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        for name, array in constants
    ]
    made = [onnx.ValueInfoProto(name=name) for name in ("y", "present_k", "present_v")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "decoder", ports, made, tensors), opset_imports=opsets, ir_version=10)


def test_a_decoder_runs_natively_step_after_step() -> None:
    model, rng = decoder(), np.random.default_rng(3)
    ours, theirs = Session(model, 1), session(model)
    past = {f"past_{name}": np.zeros((1, 2, 0, 16), np.float32) for name in "kv"}
    total = 0
    for new in (4, 1, 1, 1, 2):
        total += new
        feeds = {
            name: rng.standard_normal((1, new, width)).astype(np.float32) for name, width in (("q", 64), ("k", 32), ("v", 32))
        }
        feeds |= {**past, "mask": np.ones((1, total), np.int64)}
        made = ours.run(feeds)
        for array, wanted in zip(made.values(), theirs.run(None, feeds), strict=True):
            np.testing.assert_allclose(array, wanted, atol=CLOSE)
        past = {f"past_{name}": made[f"present_{name}"] for name in "kv"}
    in_numpy = [step.node.op for step in ours.executor(feeds).steps if not step.algorithm.startswith(("native", "view"))]
    assert in_numpy == ["ReduceSum"]  # of the mask
