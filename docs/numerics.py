# ruff: noqa: E501  a table
"""Where PyTorch, ONNX Runtime and ONNX's reference compute different results, and which of them is followed here.

`docs/numerics.md` is made from the table, and from what is said of half precision. `tests/docs/test_numerics.py` runs the case of every row in ONNX Runtime and in ONNX's
reference, and fails where one agrees or differs otherwise than the row says.
"""

from __future__ import annotations

from dataclasses import dataclass

AGREES = ""  # computes the same result as this project


@dataclass(frozen=True, slots=True)
class Difference:
    """One row. op, case: the example, of the operator's file. here: what is computed.

    pytorch, onnxruntime, reference: what these do where it is something else. AGREES: the same; None: they have no such case.
    """

    op: str
    case: str
    here: str
    pytorch: str | None = AGREES
    onnxruntime: str | None = AGREES
    reference: str | None = AGREES


_UNROUNDED = "spreads them over the size before it is rounded"
_NUMBER = "keeps the number"
_NO_PYTORCH = None

DIFFERENCES = (
    Difference("Resize", "single_size", "size · scale is multiplied in fp32 and rounded down: 10 · 1.3 makes 13", reference="multiplies in fp64: 12"),
    Difference("Resize", "linear_aligned_scale", "`align_corners` spreads positions over the size of the result", reference=_UNROUNDED),
    Difference("Resize", "crop_scale", "`tf_crop_and_resize` spreads positions over the size of the result", _NO_PYTORCH, reference=_UNROUNDED),
    Difference("Resize", "crop_only", "`tf_crop_and_resize` crops an axis of scale 1 too", _NO_PYTORCH, "does not crop it"),
    Difference("Resize", "nearest_single", "the nearest input is found by coordinates in fp32", reference="computes them in fp64"),
    Difference("Resize", "nearest_unrounded_channels", "an axis of scale 1 is not resized, whatever its coordinates say", reference=None),
    Difference("Resize", "linear_unchanged_size", "`linear` with half pixels, and `nearest` with `asymmetric`, copy an axis whose size stays, as 10 · 1.05 does", onnxruntime="interpolates it, unless no size changes", reference="interpolates it"),
    Difference("Resize", "linear_bytes", "weighted integers are rounded to the nearest, and saturate", onnxruntime="cuts fractions off"),
    Difference("GridSample", "cubic_border", "`cubic` brings each pixel that is read into the image", reference="brings the position into the image"),
    Difference("GridSample", "nearest_reflected", "`nearest` reflects a position, then rounds it", onnxruntime="rounds first", reference="rounds first"),
    Difference("MaxPool", "nan", "NaN is the maximum", onnxruntime="passes over NaN", reference="passes over NaN"),
    Difference("MaxPool", "indices_of_nan", "NaN is the maximum, and its index the last NaN's", onnxruntime="passes over NaN", reference="passes over NaN"),
    Difference("GlobalMaxPool", "nan", "NaN is the maximum", onnxruntime="passes over NaN"),
    Difference("MaxPool", "same_narrow", "`SAME_UPPER` and `SAME_LOWER` never pad less than nothing, as TensorFlow's", _NO_PYTORCH, "pads negatively or fails", "pads negatively"),
    Difference("MaxPool", "same_dilated", "`SAME_UPPER` and `SAME_LOWER` keep the size of a dilated window", _NO_PYTORCH, "forgets the dilation"),
    Difference("MaxPool", "ceil_wider", "`ceil_mode` takes a window wider than the input by less than a stride"),
    Difference("AveragePool", "ceil_wider_pad_counted", "a window that reaches over the padding is divided by the rest of it", reference="returns 0"),
    Difference("MaxPool", "astride", "the maximum of a dilated window that holds nothing is -infinity", AGREES, "the lowest finite number", "0"),
    Difference("AveragePool", "astride", "the mean of a dilated window that holds nothing is 0", _NO_PYTORCH, reference="NaN"),
    Difference("MaxUnpool", "larger", "indices count through output_shape", reference="counts them through the size that follows from the attributes"),
    Difference("LpPool", "ceil_wider", "a window that reaches over the end sums the rest of it", "scales the sum up", reference="scales the sum up"),
    Difference("ConvTranspose", "same_narrow", "`SAME_UPPER` and `SAME_LOWER` make size · stride, the zeros at the end", _NO_PYTORCH, "leaves the zeros at the end out", "shares them between both ends"),
    Difference("Pow", "root_of_specials", "powers are C's: +0 and +infinity for the power 1/2 of -0 and -infinity", "takes the square root, so -0 and NaN, where the exponent is one number", AGREES, "as PyTorch"),
    Difference("ArgMax", "nan", "NaN is the largest", onnxruntime="passes over NaN"),
    Difference("ArgMin", "nan", "NaN is the smallest", onnxruntime="passes over NaN"),
    Difference("ScatterElements", "max_of_nan", "the maximum and minimum of NaN and a number is NaN", onnxruntime=_NUMBER, reference=_NUMBER),
    Difference("Clip", "infinite", "a bound that is absent does not bound infinities", onnxruntime="bounds them by the largest finite number"),
    Difference("DynamicQuantizeLinear", "zeros", "a range of nothing has the scale 1/255", _NO_PYTORCH, "has the scale 1"),
    Difference("LSTM", "clipped", "every activation's input is clipped", _NO_PYTORCH, "does not clip the output's activation", "does not clip"),
    Difference("ReduceMean", "of_nothing", "the mean of nothing is NaN", onnxruntime="calls it 0"),
)  # fmt: skip

HALVES = """## Half precision
`backend="numpy"` keeps a file's float16 and bfloat16 values op by op: each result is computed in float32 and rounded to the type that
the file says. Native code computes such a file in float32 (`graph/passes/widen.py`), so it takes no longer than the same network in
float32, and its results are those of that network rounded once. Intermediate results are therefore at least as exact as the file's
types, and larger: a product of two float16 numbers that is 90,000 is 90,000, where float16 has infinity. ONNX Runtime does the same on
CPUs between ops that it has no half-precision kernels for.

| In the file | Here | Because |
|---|---|---|
| a half between two ops | a float32, not rounded | an exporter chose halves for their size; networks are trained to bear their rounding, none needs it |
| a constant | converted exactly; -65504 and infinity stay what they are | masks are made of them |
| an input, an output | of the file's type; an output is rounded once, ties to even, and overflows to infinity | callers see the file's interface |
| a Cast from a wider type to float16 | rounded to float16, beyond 65504 to infinity, and 0 times that is NaN | the file asks for a conversion, and a mask or a check for infinities may rest on its overflow |
| the same, where no number can be that large: behind Softmax, Sigmoid, Tanh, Erf, Sin, Cos and the like, behind a Cast from float16, or of bools and small integers | no operation, not even where views lie between | only exactness would be lost, and a fused attention with it |
| a Cast from float32 to bfloat16 | no operation | bfloat16 reaches as far as float32 (numbers above 3.39e38 would be infinite) |
| a Cast to a half that only Casts back to wider types read | a rounding of float32 | nothing is computed in half precision there, so the rounding is all that the Casts are for, as in simulated quantisation |
| a Cast from float64 to a half | stays, one rounding | by way of float32 it would be rounded twice |
| integers and bools made of halves: Cast, comparisons, ArgMax, TopK, NonZero, IsInf, IsNaN; Floor, Ceil, Round, Sign, Mod, Hardmax, Shrink and ThresholdedRelu | computed of values rounded to the half | a difference that rounding would remove may become a whole number, and a test for infinity asks about the half |
| BitCast, QuantizeLinear, random ops | stay in half precision | they read its bits, divide in its precision, or draw numbers of it |
| bodies of If, Loop and Scan; values whose shapes only a run knows | stay in half precision | they run in numpy |
| a cache of keys and values that grows (`Session.state`) | stays in half precision, and is converted where it is read | it is an input and an output, and takes half of the memory |

`tests/graph/passes/test_widen.py` has a test for every row, `tests/scheduler/test_halves.py` compares whole networks with numpy, with
float32 and with ONNX Runtime.

## Products of bfloat16
`Session(model, precision="bf16")` may compute convolutions and products with constant weights in bfloat16, and so may a plan, op by op.
Both factors are rounded to bfloat16, ties to even; their products are added up in float32, and bias, activation and all else that is
fused behind is computed in float32. A value that such a kernel reads or makes is stored as bfloat16 where all kernels that read it can
take it so (`graph/native/held.py`); other values, and all outputs of a model, are float32. Nothing is stored less exactly than that, and
ops that no such kernel is next to are those of float32.

Numbers below 2⁻¹²⁶ may become 0 in such products and stores, as processors' instructions for them do. Those that have none add the
same products by float32 multiply–adds: results differ in the last bits of sums between machines, and are the same for every number of
threads. `tests/kernels/native/test_half_conv.py` compares each kernel with float64 of the rounded factors,
`tests/graph/native/test_held.py` whole graphs with float64.
"""
