"""com.microsoft.FusedConv: Conv, then the addition of another tensor, then an activation, each of the last two on demand.

A rewrite pass makes these ops of it before it is planned (`graph.passes.expansions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.half import in_single
from kernels.ops import conv
from kernels.ops.activations import hard_sigmoid, leaky_relu, relu, sigmoid
from kernels.registry import Case, Kernel, Op
from kernels.scratch import twice
from kernels.spec import Array, Spec
from kernels.windows import Sliding

# The activations by name: how many parameters each takes, and what it computes in place
ACTIVATIONS: Mapping[str, tuple[int, Callable[..., None]]] = MappingProxyType(
    {
        "": (0, lambda _: None),
        "Relu": (0, lambda y: relu(y, y)),
        "Sigmoid": (0, lambda y: sigmoid(y, y)),
        "Tanh": (0, lambda y: np.copyto(y, np.tanh(y))),
        "LeakyRelu": (1, lambda y, alpha: leaky_relu(y, y, alpha)),
        "HardSigmoid": (2, lambda y, alpha, beta: hard_sigmoid(y, y, alpha, beta)),
        "Clip": (2, lambda y, low, high: np.copyto(y, np.clip(y, low, high))),
    }
)


@takes(Sliding)
def infer(
    x: Spec,
    w: Spec,
    b: Spec | None = None,
    z: Spec | None = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    **sliding: Any,
) -> Spec:
    """Conv's shape of x, w and b; z, which is added, has that shape too."""
    if activation not in ACTIVATIONS:
        raise AttributeValueError(f"FusedConv: activation is {activation[:40]!r}, need one of {sorted(ACTIVATIONS)}")
    wanted, _ = ACTIVATIONS[activation]
    if len(activation_params or ()) != wanted:
        raise AttributeValueError(
            f"FusedConv: activation_params has {len(activation_params or ())} numbers, {activation!r} takes {wanted}"
        )
    y = conv.infer(x, w, b, group=group, kernel_shape=kernel_shape, **sliding)
    if z is not None and z != y:
        raise ShapeError(f"FusedConv: z is {z}, it is added to {y} and needs the same shape and type")
    return y


def _own(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of the convolution alone."""
    return {name: value for name, value in attrs.items() if name not in ("activation", "activation_params")}


def cost(out: tuple[Spec, ...], x: Spec, w: Spec, b: Spec | None = None, z: Spec | None = None, **attrs: Any) -> Cost:
    """Conv's; one addition per output for z, and one operation for the activation."""
    made = conv.cost(out, x, w, b, **_own(attrs))
    extra = (z is not None) + (attrs["activation"] != "")
    return Cost(made.macs, made.other_flops + extra * out[0].elements)


@in_single
def run(
    out: tuple[Array, ...], x: Array, w: Array, b: Array | None = None, z: Array | None = None, *, workspace: Array, **attrs: Any
) -> None:
    """Conv's matrix product over all taps, then the others in place."""
    (y,) = out
    conv.run_im2col(out, x, w, b, workspace=workspace, **_own(attrs))
    if z is not None:
        y += z
    ACTIVATIONS[attrs["activation"]][1](y, *(attrs["activation_params"] or ()))


def workspace_bytes(x: Spec, w: Spec, b: Spec | None = None, z: Spec | None = None, **attrs: Any) -> int:
    """Conv's columns."""
    return conv.im2col_bytes(x, w, b, **_own(attrs))


def scratch_bytes(out: tuple[Spec, ...], x: Spec, w: Spec, *inputs: Spec | None, **attrs: Any) -> int:
    """Conv's, and copies of the result for the activation."""
    return conv.scratch_bytes(out, x, w, *inputs, **_own(attrs)) + twice(out)


_IMAGE = ((1, 3, 5, 4), (6, 3, 3, 3), (6,))
_PADS = {"pads": (1, 1, 1, 1)}

FUSED_CONV = Op(
    "com.microsoft.FusedConv",
    infer,
    cost,
    (Kernel("im2col", run, workspace_bytes=workspace_bytes, scratch_bytes=scratch_bytes),),
    tolerance_eps=16,
    cases=(
        Case("plain", inputs=_IMAGE, attrs=_PADS, cost=Cost(6 * 20 * 27, 120)),
        Case("relu", inputs=_IMAGE, attrs={**_PADS, "activation": "Relu"}, cost=Cost(6 * 20 * 27, 240)),
        Case("sigmoid", inputs=((2, 4, 1, 1), (3, 4, 1, 1)), attrs={"activation": "Sigmoid"}),
        Case("tanh", inputs=_IMAGE, attrs={"activation": "Tanh", "strides": (2, 1)}),
        Case("leaky", inputs=_IMAGE, attrs={"activation": "LeakyRelu", "activation_params": (0.1,)}),
        Case("hard_sigmoid", inputs=_IMAGE, attrs={"activation": "HardSigmoid", "activation_params": (0.25, 0.5)}),
        Case("clip", inputs=_IMAGE, attrs={"activation": "Clip", "activation_params": (0.0, 1.0)}),
        Case("added", inputs=(*_IMAGE, (1, 6, 5, 4)), attrs={**_PADS, "activation": "Relu"}, cost=Cost(3240, 360)),
        Case("added_no_bias", inputs=(*_IMAGE[:2], None, (1, 6, 5, 4)), attrs=_PADS),
        Case("added_shape", inputs=(*_IMAGE, (1, 6, 5, 1)), attrs=_PADS, raises=ShapeError),
        Case("unknown_activation", inputs=_IMAGE, attrs={"activation": "Selu"}, raises=AttributeValueError),
        Case("parameters", inputs=_IMAGE, attrs={"activation": "Clip"}, raises=AttributeValueError),
        Case("wrong_dtype", inputs=tuple(np.ones(shape, np.int32) for shape in _IMAGE), raises=DTypeError),
    ),
)
