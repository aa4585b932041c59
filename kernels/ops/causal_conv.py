"""CausalConvWithState: a depthwise convolution over time that sees the past alone, and hands on its last values as state."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import FLOATS, Array, Spec

_SILU_FLOPS = 5  # as Sigmoid, and a multiplication


def infer(
    x: Spec, weight: Spec, bias: Spec | None = None, past_state: Spec | None = None, *, activation: str = "none"
) -> tuple[Spec, Spec]:
    """x's shape (n, c, length), and the state (n, c, k - 1). weight: (c, 1, k)."""
    require_dtype("CausalConvWithState: x", x, FLOATS)
    one_of("CausalConvWithState: attribute activation", activation, ("none", "silu", "swish"))
    one_dtype("CausalConvWithState", x, weight, *(spec for spec in (bias, past_state) if spec is not None))
    if x.rank != 3 or weight.rank != 3 or weight.shape[:2] != (x.shape[1], 1) or not weight.shape[2]:
        raise ShapeError(f"CausalConvWithState: x is {x}, weight is {weight}, need (n, c, length) and (c, 1, taps)")
    state = (*x.shape[:2], weight.shape[2] - 1)
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ShapeError(f"CausalConvWithState: bias is {bias}, need one number for each of the {x.shape[1]} channels")
    if past_state is not None and past_state.shape != state:
        raise ShapeError(f"CausalConvWithState: past_state is {past_state}, need {list(state)}")
    return Spec(x.shape, x.dtype), Spec(state, x.dtype)


def cost(
    out: tuple[Spec, ...], x: Spec, weight: Spec, bias: Spec | None = None, past_state: Spec | None = None, **attrs: Any
) -> Cost:
    """MACs: outputs · taps. Others: one per output for a bias, 5 for the activation (sigmoid, multiply)."""
    each = (bias is not None) + _SILU_FLOPS * (attrs["activation"] != "none")
    return Cost(macs=x.elements * weight.shape[2], other_flops=each * x.elements)


@in_single
def run(
    out: tuple[Array | None, ...],
    x: Array,
    weight: Array,
    bias: Array | None = None,
    past_state: Array | None = None,
    *,
    activation: str,
) -> None:
    """Tap by tap, on the values of the state and x."""
    y, present = (*out, None)[:2]
    taps = weight.shape[2]
    past = np.zeros((*x.shape[:2], taps - 1), x.dtype) if past_state is None else past_state
    padded = np.concatenate((past, x), 2)
    if present is not None:
        np.copyto(present, padded[:, :, padded.shape[2] - (taps - 1) :])
    if y is None:
        return
    y[...] = 0 if bias is None else bias[:, None]
    for tap in range(taps):
        y += padded[:, :, tap : tap + x.shape[2]] * weight[:, :, tap]
    if activation != "none":
        y /= 1 + np.exp(-y)


CAUSAL_CONV = Op(
    "CausalConvWithState",
    infer,
    cost,
    (Kernel("taps", run, scratch_bytes=times(4)),),
    tolerance_eps=32,
    cases=(
        Case("plain", inputs=((2, 3, 5), (3, 1, 4)), outputs=2, cost=Cost(macs=120)),
        Case(
            "state",
            inputs=((2, 3, 5), (3, 1, 4), (3,), (2, 3, 3)),
            attrs={"activation": "silu"},
            outputs=2,
            cost=Cost(macs=120, other_flops=180),
        ),
        Case("shorter_than_state", inputs=((1, 2, 1), (2, 1, 4), None, (1, 2, 3)), attrs={"activation": "swish"}, outputs=2),
        Case("one_tap", inputs=((2, 3, 5), (3, 1, 1)), outputs=2),
        Case("empty", inputs=((2, 3, 0), (3, 1, 2)), outputs=2, cost=Cost()),
        Case("weight_shape", inputs=((2, 3, 5), (3, 2, 4)), raises=ShapeError),
        Case("bias_length", inputs=((2, 3, 5), (3, 1, 4), (2,)), raises=ShapeError),
        Case("state_shape", inputs=((2, 3, 5), (3, 1, 4), None, (2, 3, 4)), raises=ShapeError),
    ),
)
