"""com.microsoft's QLinear ops: an ONNX op on real numbers whose inputs and output are quantised in 8 bits.

Each is DequantizeLinear of its inputs, the op in float32, and QuantizeLinear of its result with ties to even. ONNX Runtime's
kernels compute some by tables or in other orders, and may differ by one step where a result lies near the middle of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.batch_axis import Application, RowRule, broadcast_keeps_rows, only_first_input_has_rows, works_along_axis
from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.ops import quantize
from kernels.quantisation import FORMS, real_attributes
from kernels.registry import Case, Kernel, Op, evaluate, find, require_dtype
from kernels.scratch import for_each
from kernels.spec import BYTES, Array, Spec
from kernels.windows import Sliding

_F32 = np.dtype(np.float32)


def check_quantised(name: str, label: str, x: Spec | None, scale: Spec | None, zero: Spec | None) -> None:
    """Raise unless x has 8 bits, its scale is one float32, and its zero point, if there is one, is one number of x's dtype."""
    if x is None or scale is None:
        raise ShapeError(f"{name}: {label} is {x} and {label}_scale is {scale}, need both")
    require_dtype(f"{name}: {label}", x, BYTES)
    require_dtype(f"{name}: {label}_scale", scale, frozenset({_F32}))
    if zero is not None and zero.dtype != x.dtype:
        raise DTypeError(f"{name}: {label}_zero_point is {zero}, need the dtype of {label} {x}")
    for part, spec in (("scale", scale), ("zero_point", zero)):
        if spec is not None and spec.shape not in ((), (1,)):
            raise ShapeError(f"{name}: {label}_{part} is {spec}, need one number")


def _second(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with the last axis, that of channels, behind the first."""
    return (*shape[:1], *shape[-1:], *shape[1:-1]) if len(shape) > 1 else shape


def _real(specs: Sequence[Spec], attrs: Mapping[str, Any]) -> list[Spec]:
    """Return the specs of the real numbers behind tensors, with channels as the second axis."""
    return [Spec(_second(x.shape) if attrs.get("channels_last") else x.shape, _F32) for x in specs]


def _dequantised(x: Array, scale: Array, zero: Array | None) -> Array:
    y = np.empty(x.shape, _F32)
    quantize.run_dequantize((y,), x, scale.reshape(()), zero)
    return y


def _op(name: str, attributes: Callable[..., Any], cases: tuple[Case, ...], rule: RowRule | None) -> Op:
    """Return the op of that name. attributes: a function with the attributes that it has as keywords."""
    form = FORMS[f"com.microsoft.{name}"]

    @takes(attributes)
    def infer(*inputs: Spec | None, **attrs: Any) -> Spec:
        triples, (scale, zero) = form.parts(inputs)
        if not triples or len(inputs) > 3 * len(triples) + 2:
            raise ShapeError(f"{form.name}: it has {len(inputs)} inputs, need a scale and zero point for each tensor")
        for number, triple in enumerate(triples):
            check_quantised(form.name, f"input {number}", *triple)
        tensors = [x for x, _, _ in triples]
        for number, x in enumerate(tensors):
            if x.dtype != tensors[0].dtype:
                raise DTypeError(f"{form.name}: input {number} is {x}, need the dtype of input 0, {tensors[0]}")
        inner = find(form.inner)
        made, *_ = inner.infer_specs(_real(tensors, attrs), inner.bind(real_attributes(attrs)))
        shape = (*made.shape[:1], *made.shape[2:], made.shape[1]) if attrs.get("channels_last") else made.shape
        check_quantised(form.name, "result", Spec(shape, tensors[0].dtype), scale, zero)
        return Spec(shape, tensors[0].dtype)

    def cost(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> Cost:
        triples, (scale, zero) = form.parts(inputs)
        inner, tensors = find(form.inner), [x for x, _, _ in triples]
        parts = [quantize.cost_dequantize(out, out[0] if form.tensors == 2 else x, *point) for x, *point in triples]
        parts.append(quantize.cost_quantize(out, out[0], scale, zero))
        own = inner.count(_real(tensors, attrs), tuple(_real(out, attrs)), inner.bind(real_attributes(attrs)))
        return sum(parts, own or Cost())

    def run(out: tuple[Array, ...], *inputs: Array | None, **attrs: Any) -> None:
        triples, (scale, zero) = form.parts(inputs)
        real = [_dequantised(*triple) for triple in triples]
        if attrs.get("channels_last"):
            real = [np.moveaxis(x, -1, 1) for x in real]
        made, *_ = evaluate(find(form.inner), real, real_attributes(attrs))
        if attrs.get("channels_last"):
            made = np.moveaxis(made, 1, -1)
        quantize.run_quantize(out, made, scale.reshape(()), zero)

    infer.__doc__ = f"{form.inner}'s shape, in the dtype of the tensors."
    cost.__doc__ = f"As DequantizeLinear of {'two outputs' if form.tensors == 2 else 'the inputs'}, {form.inner}, QuantizeLinear."
    run.__doc__ = f"Dequantise, {form.inner}, quantise."
    kernels = (Kernel("passes", run, scratch_bytes=for_each(16)),)
    return Op(f"com.microsoft.{form.name}", infer, cost, kernels, mixes_rows=rule, cases=cases)


def _no_attributes() -> None:
    """Of ops without any."""


def _leaky_relu(*, alpha: float = 0.01) -> None:
    """Of QLinearLeakyRelu."""


def _softmax(*, axis: int = -1, opset: int) -> None:
    """Of QLinearSoftmax. opset: before 13, every dimension from `axis` on is normalised over together."""


def _concat(*, axis: int) -> None:
    """Of QLinearConcat."""


def _global(*, channels_last: int = 0) -> None:
    """Of QLinearGlobalAveragePool. channels_last: whether x is (n, spatial…, c)."""


@takes(Sliding, "auto_pad", "pads", "strides")
def _average(
    *, ceil_mode: int = 0, channels_last: int = 0, count_include_pad: int = 0, kernel_shape: tuple[int, ...], **sliding: Any
) -> None:
    """Of QLinearAveragePool."""


def pair_mixes_rows(call: Application) -> str:
    """As an elementwise op of the two tensors; scales and zero points are the same for every row."""
    pair = (call.input(0), call.input(3))
    late = [each for each in call.inputs if each is not None and each not in pair and not each.is_free]
    return f"{late[0].name!r} depends on the batch" if late else broadcast_keeps_rows(replace(call, inputs=pair))


def _q(*shape: int) -> Array:
    return (np.arange(np.prod(shape, dtype=int)) * 37 % 256).astype(np.uint8).reshape(shape)


def _s(*shape: int) -> Array:
    return (np.arange(np.prod(shape, dtype=int)) * 53 % 256 - 128).astype(np.int8).reshape(shape)


def _f(value: float) -> Array:
    return np.array(value, np.float32)


_Z, _SZ = np.array(128, np.uint8), np.array(-7, np.int8)
_X, _Y = (_f(0.031), np.array(119, np.uint8)), (_f(0.047), np.array(101, np.uint8))  # scales and zero points
_SX, _SY = (_f(0.031), _SZ), (_f(0.047), np.array(12, np.int8))


def _pair(flops: int) -> tuple[Case, ...]:
    """Cases of an op of two tensors. flops: of its first case."""
    return (
        Case("same_shape", inputs=(_q(2, 3, 5), *_X, _q(2, 3, 5)[::-1], *_Y, _f(0.05), _Z), cost=Cost(other_flops=flops)),
        Case("broadcast", inputs=(_q(2, 3, 5), *_X, _q(3, 1), *_Y, _f(0.05), _Z)),
        Case("signed", inputs=(_s(4, 9), *_SX, _s(9), *_SY, _f(0.06), _SZ)),
        Case("no_zero_points", inputs=(_q(2, 3), _f(0.01), None, _q(2, 3), _f(0.02), None, _f(0.03))),
        Case("saturated", inputs=(_q(2, 3), *_X, _q(2, 3), *_Y, _f(0.001), _Z)),
        Case("empty", inputs=(_q(0, 3), *_X, _q(3), *_Y, _f(0.05), _Z), cost=Cost()),
        Case("types_differ", inputs=(_q(2, 3), *_X, _s(2, 3), *_SY, _f(0.05), _Z), raises=DTypeError),
        Case("shapes_differ", inputs=(_q(2, 3), *_X, _q(2), *_Y, _f(0.05), _Z), raises=ShapeError),
        Case("scale_length", inputs=(_q(2), np.ones(2, np.float32), _Z, _q(2), *_Y, _f(0.05), _Z), raises=ShapeError),
        Case("scale_rank", inputs=(_q(2), np.ones((1, 1), np.float32), _Z, _q(2), *_Y, _f(0.05), _Z), raises=ShapeError),
        Case("floats", inputs=((2, 3), *_X, (2, 3), *_Y, _f(0.05), _Z), raises=DTypeError),
        Case("no_result_scale", inputs=(_q(2), *_X, _q(2), *_Y), raises=ShapeError),
    )


def _single(flops: int, **attrs: Any) -> tuple[Case, ...]:
    """Cases of an op of one tensor that keeps its shape. flops: of its first case."""
    return (
        Case("random", inputs=(_q(2, 3, 5), *_X, _f(1 / 256), _Z), attrs=attrs, cost=Cost(other_flops=flops)),
        Case("signed", inputs=(_s(4, 9), *_SX, _f(1 / 256), np.array(-128, np.int8)), attrs=attrs),
        Case("no_zero_points", inputs=(_q(2, 3), _f(0.01), None, _f(0.03), np.array(0, np.uint8)), attrs=attrs),
        Case("every_byte", inputs=(np.arange(256, dtype=np.uint8).reshape(1, 256), *_X, _f(0.004), _Z), attrs=attrs),
        Case("zero_point_type", inputs=(_q(2, 3), _f(0.01), _SZ, _f(0.03), _Z), attrs=attrs, raises=DTypeError),
        Case("result_scale_length", inputs=(_q(2, 3), *_X, np.ones(3, np.float32), _Z), attrs=attrs, raises=ShapeError),
    )


_IMAGE = (_q(2, 3, 5, 6), *_X, *_Y)
_K3 = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
_AVERAGE = (
    Case("3x3_padded", inputs=_IMAGE, attrs=_K3, cost=Cost(other_flops=2 * 180 + (9 + 5) * 54)),
    Case("pad_counted", inputs=_IMAGE, attrs={**_K3, "count_include_pad": 1}),
    Case("ceil", inputs=(_s(1, 2, 6, 6), *_SX, *_SY), attrs={"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1}),
    Case("channels_last", inputs=(_q(2, 5, 6, 3), *_X, *_Y), attrs={**_K3, "channels_last": 1}),
    Case("same_upper", inputs=_IMAGE, attrs={"kernel_shape": (2, 2), "auto_pad": "SAME_UPPER"}),
    Case("no_image", inputs=(_q(2, 3), *_X, *_Y), attrs=_K3, raises=ShapeError),
)
_GLOBAL = (
    Case("planes", inputs=_IMAGE, cost=Cost(other_flops=3 * 180 + 5 * 6)),
    Case("channels_last", inputs=(_q(2, 5, 6, 3), *_X, *_Y), attrs={"channels_last": 1}),
    Case("signed", inputs=(_s(1, 4, 7, 7), *_SX, *_SY)),
    Case("nothing_to_pool", inputs=(_q(2, 3, 0, 4), *_X, *_Y), raises=ShapeError),
)
_SOFTMAX = (
    *_single(12 * 30, opset=13),
    Case("first_axis", inputs=(_q(4, 6), *_X, _f(1 / 256), np.array(0, np.uint8)), attrs={"axis": 0, "opset": 13}),
    Case("as_matrix", inputs=(_q(2, 3, 4), *_X, _f(1 / 256), np.array(0, np.uint8)), attrs={"axis": 1, "opset": 11}),
    Case("axis", inputs=(_q(4, 6), *_X, *_Y), attrs={"axis": 2, "opset": 13}, raises=ShapeError),
)
_CONCAT = (
    Case("two", inputs=(*_X, _q(2, 3), *_X, _q(2, 4), *_Y), attrs={"axis": 1}, cost=Cost(other_flops=14 * 7)),
    Case("three_signed", inputs=(*_SX, _s(1, 3), *_SX, _s(2, 3), *_SY, _s(3, 3), *_SX), attrs={"axis": 0}),
    Case("one", inputs=(*_X, _q(2, 3), *_Y), attrs={"axis": -1}),
    Case("nothing", inputs=_X, attrs={"axis": 0}, raises=ShapeError),
    Case("no_scale", inputs=(*_X, _q(2, 3)), attrs={"axis": 0}, raises=ShapeError),
    Case("sizes_differ", inputs=(*_X, _q(2, 3), *_X, _q(2, 4), *_Y), attrs={"axis": 0}, raises=ShapeError),
)

_FIRST = only_first_input_has_rows


OPS = (
    _op("QLinearAdd", _no_attributes, _pair(10 * 30), pair_mixes_rows),
    _op("QLinearMul", _no_attributes, _pair(10 * 30), pair_mixes_rows),
    _op("QLinearSigmoid", _no_attributes, _single(11 * 30), _FIRST),
    _op("QLinearLeakyRelu", _leaky_relu, _single(9 * 30, alpha=0.1), _FIRST),
    _op("QLinearSoftmax", _softmax, _SOFTMAX, works_along_axis),
    _op("QLinearAveragePool", _average, _AVERAGE, _FIRST),
    _op("QLinearGlobalAveragePool", _global, _GLOBAL, _FIRST),
    _op("QLinearConcat", _concat, _CONCAT, None),
)
