"""Every case against ONNX Runtime, an independent engine, where it has a kernel for the op and its types."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kernels.containers import as_lists
from kernels.native.target.host import host
from kernels.registry import Case, Op, evaluate
from kernels.spec import Array
from tests.kernels.ops.cases import arrays, assert_same, deterministic, for_each_op, valid_cases
from tests.kernels.ops.models import one_node_model, plain

# Where ONNX Runtime and ONNX differ, or ONNX leaves the result open; (op, case id) -> reason.
EXCUSED: dict[tuple[str, str], str] = {
    ("ArgMax", "nan"): "it passes over NaN, PyTorch returns its position",
    ("ArgMin", "nan"): "it passes over NaN, PyTorch returns its position",
    ("Attention", "empty_batch"): "it refuses an empty batch",
    ("Cast", "to_bfloat16"): "its Python API cannot return bfloat16",
    ("Cast", "to_float8_saturated"): "its Python API returns float8 as uint8",
    ("Clip", "infinite"): "it clips at the largest finite number where there is no bound",
    ("ConvInteger", "by_channel"): "it supports one zero point for all weights only",
    ("ConvTranspose", "same_narrow"): "it leaves out the zeros behind the last window, ONNX asks for size · stride",
    ("DequantizeLinear", "four_bits"): "its Python API takes no int4",
    ("DynamicQuantizeLinear", "zeros"): "it gives a range of nothing the scale 1, ONNX's reference 1/255",
    ("GRU", "batch_first"): "it supports no layout 1",
    ("GlobalMaxPool", "nan"): "it passes over NaN, PyTorch returns it",
    ("GridSample", "nowhere"): "ONNX leaves open what lies at a position that is no number",
    ("GridSample", "nearest_reflected"): "it rounds a position before it reflects it, PyTorch afterwards",
    ("GroupNormalization", "empty"): "it cannot reshape an empty batch",
    ("LRN", "even"): "it refuses even sizes",
    ("LSTM", "batch_first"): "it supports no layout 1",
    ("LSTM", "clipped"): "it does not clip what enters the output's activation, ONNX says every activation's input",
    ("MatMulInteger", "by_row_and_column"): "it supports one zero point for all of a only",
    ("MaxPool", "indices_of_nan"): "it passes over NaN, PyTorch returns it",
    ("MaxPool", "nan"): "it passes over NaN, PyTorch returns it",
    ("MaxPool", "same_narrow"): "it refuses the negative pads that it derives, TensorFlow's SAME never pads less than nothing",
    ("MaxPool", "same_dilated"): "it takes the window for undilated when it derives pads",
    ("MaxPool", "astride"): "it calls the maximum of nothing the lowest finite number, PyTorch -infinity",
    ("MaxPool", "astride_indices"): "it calls the maximum of nothing the lowest finite number, PyTorch -infinity",
    ("Mod", "floats"): "it refuses fmod=0 with floats, defined since opset 28",
    ("Mod", "float_specials"): "it refuses fmod=0 with floats, defined since opset 28",
    ("OneHot", "scalar"): "it refuses scalar indices",
    ("Pad", "reflect_twice_around"): "it reflects once only",
    ("Pad", "scalar"): "it cannot pad a scalar",
    ("Resize", "crop_only"): "it does not crop an axis of scale 1, ONNX's reference does",
    ("Resize", "linear_unchanged_size"): "it interpolates an axis whose size stays, PyTorch copies it",
    ("BlackmanWindow", "float64"): "it computes with float32 coefficients",
    ("HammingWindow", "float64"): "it computes with float32 coefficients",
    ("QuantizeLinear", "float8"): "its Python API returns float8 as uint8",
    ("QuantizeLinear", "four_bits"): "its Python API returns no int4",
    ("QuantizeLinear", "specials"): "it makes NaN the lowest value",
    ("RNN", "batch_first"): "it supports no layout 1",
    ("Resize", "linear_bytes"): "it cuts the fractions of linear off, PyTorch and ONNX's reference round",
    ("Resize", "cubic_bytes"): "it takes no bytes here",
    ("STFT", "whole"): "it needs the window or the frame length",
    ("ScatterElements", "max_of_nan"): "it keeps a number where NaN meets it, PyTorch NaN",
    ("SoftmaxCrossEntropyLoss", "empty"): "it cannot reshape an empty batch",
    ("StringNormalizer", "upper"): "it needs the locale en_US installed",
    ("StringNormalizer", "stopped"): "it needs the locale en_US installed",
    ("StringSplit", "delimiter"): "it splits an empty string into nothing, ONNX's reference into one",
    ("Pow", "exponent_beyond_int32"): "it computes in float64, which cannot hold the exponent",
    **{
        ("com.microsoft.GatherBlockQuantized", case): "its Python API takes no int4"
        for case in ("nibbles", "gathered_blocks", "by_column")
    },
    ("TfIdfVectorizer", "endless_skips"): "it counts every skip, in years",
    ("com.microsoft.GroupQueryAttention", "buffer"): "it attends to memory that it has not written where no present is asked for",
    ("com.microsoft.GroupQueryAttention", "rows_of_other_lengths"): "as buffer",
    ("com.microsoft.MultiHeadAttention", "packed"): "it packs nothing on CPUs",
    ("com.microsoft.MultiHeadAttention", "packed_pair"): "as packed",
    ("com.microsoft.MatMulNBits", "ordered_zero_points"): "with g_idx it reads zero points wrongly where a row has an odd number",
    ("com.microsoft.QLinearAdd", "no_zero_points"): "it needs zero points",
    ("com.microsoft.QLinearMul", "no_zero_points"): "it needs zero points",
    ("ai.onnx.ml.Normalizer", "max"): "its MAX is the largest number, scikit-learn's and ONNX's reference the largest magnitude",
    ("ai.onnx.ml.ZipMap", "integers"): "it returns maps, here they are the scores",
    ("ai.onnx.ml.ZipMap", "strings"): "it returns maps, here they are the scores",
    ("ReduceMean", "of_nothing"): "it calls the mean of nothing 0, numpy and ONNX's reference NaN",
}

# It computes these in tables, in fixed point or in other orders. A result near the middle of two steps may become the other
# one; this many have of a case at most. Every other op, and every element beside these, is the same.
ONE_STEP_OFF = {
    "com.microsoft.QLinearAdd": 1,
    "com.microsoft.QLinearAveragePool": 2,
    "com.microsoft.QLinearSoftmax": 2,
}

SATURATING = {("MatMulInteger", "plain"), ("MatMulInteger", "zero_points"), ("QLinearConv", "by_channel")}
OPSET = 24  # the newest that every supported version of ONNX Runtime accepts
_UNSUPPORTED = ("NOT_IMPLEMENTED", "is not a registered function/op", "INVALID_GRAPH", "opset")


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a session of ONNX Runtime that changes nothing of the model, on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_excused_cases_exist() -> None:
    assert set(EXCUSED) <= {(p.values[0].name, p.values[1].id) for p in valid_cases()}


@for_each_op(valid_cases(deterministic))
def test_case_agrees_with_onnxruntime(op: Op, case: Case) -> None:
    if reason := EXCUSED.get((op.name, case.id)):
        pytest.skip(reason)
    if (op.name, case.id) in SATURATING and host().arch == "x86_64" and "avx512vnni" not in host().features:
        pytest.skip("without VNNI it adds 8-bit products in 16 bits, which saturate")
    inputs = arrays(op, case)
    domain, _, name = op.name.rpartition(".")
    model = one_node_model(name, inputs, case.outputs, case.attrs, domain=domain, opset=OPSET)
    try:
        engine = session(model)
    except Exception as error:
        if not any(text in str(error) for text in _UNSUPPORTED):
            raise
        pytest.skip("ONNX Runtime has no such kernel")
    expected = engine.run(None, {f"x{i}": as_lists(a) for i, a in enumerate(inputs) if a is not None})
    for y, wanted in zip(evaluate(op, inputs, case.attrs)[: case.outputs], map(plain, expected), strict=True):
        if op.name in ONE_STEP_OFF:
            assert y.dtype == wanted.dtype
            _assert_few_steps_differ(y, wanted, ONE_STEP_OFF[op.name])
        else:
            assert_same(as_lists(y), wanted, 2 * op.tolerance_eps)


def _assert_few_steps_differ(y: Array, wanted: Array, most: int) -> None:
    """Assert that integers are equal but for `most` elements, which differ by one."""
    assert y.shape == wanted.shape
    steps = np.abs(y.astype(np.int64) - wanted.astype(np.int64))
    assert steps.max(initial=0) <= 1
    assert np.count_nonzero(steps) <= most
