"""Every case against ONNX's own definition, `onnx.reference`, as a one-node model of the newest opset."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from kernels.containers import as_lists
from kernels.registry import Case, Op, evaluate
from tests.kernels.ops.cases import arrays, assert_same, deterministic, for_each_op, valid_cases
from tests.kernels.ops.models import one_node_model, plain

# Where onnx.reference is wrong, or ONNX leaves the result open; (op, case id) -> reason.
EXCUSED: dict[tuple[str, str], str] = {
    (
        "AveragePool",
        "ceil_wider_pad_counted",
    ): "the reference sums nothing where a window is wider than the padded input",
    ("AveragePool", "astride"): "the reference calls the mean of nothing NaN, ONNX Runtime 0",
    ("AveragePool", "astride_columns"): "the reference calls the mean of nothing NaN, ONNX Runtime 0",
    ("ConvTranspose", "empty_batch"): "the reference knows no empty batch",
    ("ConvTranspose", "grouped"): "the reference splits the weights of groups wrongly",
    ("ConvTranspose", "output_shape_cut"): "the reference ignores that output_shape makes pads",
    ("ConvTranspose", "same_narrow"): "the reference shares the zeros behind the last window between both ends",
    ("GRU", "clipped"): "the reference ignores clip",
    ("GRU", "lengths"): "the reference ignores sequence_lens",
    ("GRU", "lengths_reverse"): "the reference ignores sequence_lens",
    ("GatherElements", "axis_one"): "the reference refuses indices smaller than the data, which ONNX allows",
    ("GlobalLpPool", "p3"): "the reference has no such operator",
    ("GlobalLpPool", "planes"): "the reference has no such operator",
    ("GlobalMaxPool", "one_dimension"): "the reference drops the pooled axis",
    ("GridSample", "nowhere"): "ONNX leaves open what lies at a position that is no number",
    ("GridSample", "no_position"): "the reference returns an array without its tuple",
    ("GridSample", "cubic_border"): "the reference clamps the position, PyTorch and ONNX Runtime each pixel that is read",
    ("GridSample", "nearest_reflected"): "the reference rounds a position before it reflects it, PyTorch afterwards",
    ("GroupNormalization", "empty"): "the reference cannot reshape an empty batch",
    ("ImageDecoder", "no_image"): "the reference refuses what ONNX makes an empty image of",
    ("LRN", "even"): "the reference sums channels for the first images only",
    ("LRN", "five"): "the reference sums channels for the first images only",
    ("LRN", "one"): "the reference sums channels for the first images only",
    ("LRN", "wider_than_channels"): "the reference sums channels for the first images only",
    ("LSTM", "activations"): "the reference ignores activations",
    ("LSTM", "clipped"): "the reference ignores clip",
    ("LSTM", "coupled"): "the reference ignores input_forget",
    ("LSTM", "lengths"): "the reference ignores sequence_lens",
    ("LSTM", "lengths_reverse"): "the reference ignores sequence_lens",
    ("LpNormalization", "first_axis_p1"): "the reference sums without absolute values",
    ("LpPool", "ceil_wider"): "the reference scales the sum of a window that is cut up to the whole window",
    ("MaxPool", "indices_of_nan"): "the reference passes over NaN, PyTorch returns it",
    ("MaxPool", "nan"): "the reference passes over NaN, PyTorch returns it",
    ("MatMulInteger", "by_row_and_column"): "the reference cannot broadcast a zero point by row",
    ("MaxPool", "same_narrow"): "the reference pads negatively where a window is narrower than its stride",
    ("MaxPool", "astride"): "the reference calls the maximum of nothing 0, PyTorch -infinity",
    ("MaxPool", "astride_indices"): "the reference calls the maximum of nothing 0, PyTorch -infinity",
    ("MaxUnpool", "larger"): "the reference does not count indices through output_shape, ONNX Runtime does",
    ("MaxUnpool", "back"): "as larger",
    ("NegativeLogLikelihoodLoss", "empty"): "the reference cannot reshape an empty batch",
    ("NonMaxSuppression", "none_asked_for"): "the reference needs the optional limit",
    ("LogSoftmax", "large_values"): "the reference takes the logarithm of an underflowed 0",
    ("LogSoftmax", "empty"): "the reference writes into its own read-only empty array",
    ("Mean", "broadcast_three"): "the reference cannot broadcast",
    ("NonZero", "scalar"): "numpy refuses scalars; a vector of one, as ONNX Runtime has it",
    ("Pow", "root_of_specials"): "the reference takes the square root, C defines the power of -infinity as infinity",
    ("Pow", "roots_by_row"): "as root_of_specials",
    ("QuantizeLinear", "saturated"): "the reference turns what no int32 holds into the lowest value",
    ("QuantizeLinear", "specials"): "as saturated",
    ("QuantizeLinear", "specials_of_sixteen_bits"): "as saturated",
    ("QuantizeLinear", "of_ints"): "as saturated",
    ("RNN", "clipped"): "the reference ignores clip",
    ("RNN", "lengths"): "the reference ignores sequence_lens",
    ("RNN", "lengths_reverse"): "the reference ignores sequence_lens",
    ("RNN", "relu"): "the reference knows tanh and affine only",
    ("ScatterElements", "max_of_nan"): "the reference keeps a number where NaN meets it, PyTorch NaN",
    ("StringNormalizer", "stopped"): "the reference compares stop words by case where they are said not to be",
    ("Unique", "columns_unsorted"): "the reference takes rows whatever the axis",
    ("Pad", "negative"): "the reference cannot take rows away",
    ("Pad", "scalar"): "the reference cannot pad a scalar",
    ("ReduceLogSumExp", "scalar"): "the reference returns a numpy scalar and refuses it itself",
    ("ReduceSumSquare", "ints"): "the reference returns int64 for int32",
    (
        "Resize",
        "crop_scale",
    ): "the reference spreads positions over the size before rounding, PyTorch and ONNX Runtime over the size",
    ("Resize", "linear_aligned_scale"): "as crop_scale",
    ("Resize", "nearest_aligned_scale"): "as crop_scale",
    ("Resize", "linear_unchanged_size"): "the reference interpolates an axis whose size stays, PyTorch copies it",
    ("Resize", "nearest_unrounded_channels"): "the reference does not know tf_half_pixel_for_nn, which opset 13 removed",
    ("Resize", "nearest_single"): "the reference computes coordinates in fp64, PyTorch and ONNX Runtime in fp32",
    ("Resize", "nearest_symmetric"): "as nearest_single",
    ("Resize", "single_size"): "the reference multiplies sizes by fp32 scales in fp64, PyTorch's numbers are met in fp32",
    ("SoftmaxCrossEntropyLoss", "empty"): "the reference cannot reshape an empty batch",
    ("SoftmaxCrossEntropyLoss", "large"): "the reference takes the logarithm of an underflowed 0",
    ("Optional", "nothing"): "as tensor",
    ("Optional", "sequence"): "as tensor",
    ("Optional", "tensor"): "the reference returns what an optional holds in a list of its own",
    ("RegexFullMatch", "backtracks"): "the reference takes exponential time",
    ("RegexFullMatch", "classes"): "the reference reads Python's syntax, ONNX defines RE2's",
    ("RegexFullMatch", "line_end"): "as classes",
    ("TfIdfVectorizer", "permuted"): "the reference takes weights by output, ONNX and ONNX Runtime by n-gram",
    ("TfIdfVectorizer", "endless_skips"): "the reference counts every skip",
    ("Softsign", "scalar"): "the reference returns a numpy scalar and refuses it itself",
}


def test_excused_cases_exist() -> None:
    existing = {(p.values[0].name, p.values[1].id) for p in valid_cases()}
    assert set(EXCUSED) <= existing


@for_each_op(valid_cases(deterministic))
def test_case_agrees_with_onnx_reference(op: Op, case: Case) -> None:
    if not onnx.defs.has(op.name) or onnx.defs.get_schema(op.name).deprecated:
        pytest.skip("no operator of the newest ai.onnx")
    if reason := EXCUSED.get((op.name, case.id)):
        pytest.skip(reason)
    if unknown := set(case.attrs) - set(onnx.defs.get_schema(op.name).attributes):
        pytest.skip(f"attribute {unknown} is not ONNX's: the rewritten form of an older opset")
    inputs = arrays(op, case)
    actual = evaluate(op, inputs, case.attrs)[: case.outputs]
    model = one_node_model(op.name, inputs, case.outputs, case.attrs)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the reference overflows aloud
        expected = ReferenceEvaluator(model).run(None, {f"x{i}": as_lists(a) for i, a in enumerate(inputs) if a is not None})
    for y, wanted in zip(actual, map(plain, expected), strict=True):
        # both round to the same dtype: each may be off by the op's tolerance
        assert_same(as_lists(y), wanted, 2 * op.tolerance_eps)
