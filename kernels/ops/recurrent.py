"""LSTM, GRU and RNN: one matrix product for all inputs, then one a step for the state, in one or both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.half import is_half
from kernels.operands import one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec

Activation = Callable[[Array], Array]
Cell = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def _sigmoid(x: Array) -> Array:
    y = np.exp(-x)
    y += 1
    return np.reciprocal(y, out=y)


# ONNX's activations: how many of alpha and beta each takes, their defaults, and the formula
_ACTIVATIONS: Mapping[str, tuple[tuple[float, ...], Callable[..., Array]]] = MappingProxyType(
    {
        "relu": ((), lambda x: np.maximum(x, 0)),
        "tanh": ((), np.tanh),
        "sigmoid": ((), _sigmoid),
        "affine": ((1.0, 0.0), lambda x, a, b: x * a + b),
        "leakyrelu": ((0.01,), lambda x, a: np.where(x < 0, x * a, x)),
        "thresholdedrelu": ((1.0,), lambda x, a: np.where(x > a, x, x.dtype.type(0))),
        "scaledtanh": ((1.0, 1.0), lambda x, a, b: np.tanh(x * b) * a),
        "hardsigmoid": ((0.2, 0.5), lambda x, a, b: np.clip(x * a + b, 0, 1)),
        "elu": ((1.0,), lambda x, a: np.where(x < 0, np.expm1(np.minimum(x, 0)) * a, x)),
        "softsign": ((), lambda x: x / (1 + np.abs(x))),
        "softplus": ((), lambda x: np.logaddexp(x, x.dtype.type(0))),
    }
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What differs between the three: gates, other flops a hidden unit and step, and the default activations."""

    name: str
    gates: int
    unit_flops: int
    activations: tuple[str, ...]


_LSTM = _Kind("LSTM", 4, 9, ("Sigmoid", "Tanh", "Tanh"))
_GRU = _Kind("GRU", 3, 8, ("Sigmoid", "Tanh"))
_RNN = _Kind("RNN", 1, 1, ("Tanh",))


def _chosen(kind: _Kind, directions: int, attrs: Mapping[str, Any]) -> list[tuple[Activation, ...]]:
    """The activations of each direction. Every function that has parameters takes the next of alpha and beta, or its default."""
    names = tuple(attrs["activations"] or kind.activations * directions)
    if len(names) != len(kind.activations) * directions:
        raise AttributeValueError(f"{kind.name}: activations are {names}, need {len(kind.activations) * directions}")
    alphas, betas = iter(attrs["activation_alpha"] or ()), iter(attrs["activation_beta"] or ())
    found = [_activation(kind.name, name, alphas, betas, attrs["clip"]) for name in names]
    each = len(kind.activations)
    return [tuple(found[i * each : (i + 1) * each]) for i in range(directions)]


def _activation(op: str, name: str, alphas: Iterator[float], betas: Iterator[float], clip: float | None) -> Activation:
    one_of(f"{op}: activation", name.lower(), _ACTIVATIONS)
    defaults, formula = _ACTIVATIONS[name.lower()]
    given = [next(values, default) for values, default in zip((alphas, betas), defaults, strict=False)]

    def apply(x: Array) -> Array:
        limited = x if clip is None else np.clip(x, x.dtype.type(-clip), x.dtype.type(clip))
        return formula(limited, *(x.dtype.type(value) for value in given))

    return apply


def _infer(
    kind: _Kind,
    x: Spec,
    w: Spec,
    r: Spec,
    b: Spec | None,
    lengths: Spec | None,
    states: Mapping[str, Spec | None],
    p: Spec | None,
    attrs: Mapping[str, Any],
) -> tuple[Spec, Spec]:
    """Y and Y_h. Every refusal is here."""
    name, floats = kind.name, [spec for spec in (x, w, r, b, p, *states.values()) if spec is not None]
    require_dtype(f"{name}: x", x, FLOATS)
    one_dtype(name, *floats)
    one_of(f"{name}: attribute direction", attrs["direction"], ("forward", "reverse", "bidirectional"))
    one_of(f"{name}: attribute layout", attrs["layout"], (0, 1))
    directions = 2 if attrs["direction"] == "bidirectional" else 1
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        raise ShapeError(f"{name}: x is {x}, w is {w}, r is {r}, need three axes each")
    steps, batch = x.shape[1::-1] if attrs["layout"] else x.shape[:2]
    hidden, rows = r.shape[2], kind.gates * r.shape[2]
    wanted: dict[str, tuple[Spec | None, tuple[int, ...]]] = {
        "w": (w, (directions, rows, x.shape[2])),
        "r": (r, (directions, rows, hidden)),
        "b": (b, (directions, 2 * rows)),
        "p": (p, (directions, 3 * hidden)),
        "sequence_lens": (lengths, (batch,)),
    }
    state = (batch, directions, hidden) if attrs["layout"] else (directions, batch, hidden)
    wanted |= {label: (spec, state) for label, spec in states.items()}
    for label, (spec, shape) in wanted.items():
        if spec is not None and spec.shape != shape:
            raise ShapeError(f"{name}: {label} is {spec}, need {list(shape)} for x {x} and {hidden} hidden units")
    if lengths is not None and lengths.dtype != np.int32:
        raise DTypeError(f"{name}: sequence_lens is {lengths}, need int32")
    if attrs["hidden_size"] not in (None, hidden):
        raise AttributeValueError(f"{name}: hidden_size is {attrs['hidden_size']}, need {hidden} as in r {r}")
    if attrs["clip"] is not None and not attrs["clip"] >= 0:
        raise AttributeValueError(f"{name}: clip is {attrs['clip']}, need 0 or more")
    _chosen(kind, directions, attrs)
    y = (batch, steps, directions, hidden) if attrs["layout"] else (steps, directions, batch, hidden)
    return Spec(y, x.dtype), Spec(state, x.dtype)


def _cost(kind: _Kind, out: tuple[Spec, ...], x: Spec, b: Spec | None, p: Spec | None = None) -> Cost:
    """Every step of every sequence, however long its `sequence_lens` says it is."""
    hidden = out[0].shape[-1]
    per_unit = kind.unit_flops + (kind.gates if b is not None else 0) + (6 if p is not None else 0)
    return Cost(macs=out[0].elements * kind.gates * (x.shape[2] + hidden), other_flops=out[0].elements * per_unit)


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if is_half(array.dtype) else array


def _run(
    out: tuple[Array | None, ...],
    x: Array,
    w: Array,
    bias: Array | None,
    lengths: Array | None,
    initial: tuple[Array | None, ...],
    cells: list[Cell],
    attrs: Mapping[str, Any],
) -> None:
    """Every direction: project all inputs at once, step through time, write what is read. bias: (directions, rows)."""
    by_batch = bool(attrs["layout"])
    x = _wide(x.swapaxes(0, 1) if by_batch else x)
    hidden = attrs["hidden"]
    y, finals = out[0], (*out[1:], None, None)[: len(initial)]
    for d, cell in enumerate(cells):
        rows = np.matmul(x, _wide(w[d]).T)
        if bias is not None:
            rows += _wide(bias[d])
        state = tuple(
            np.zeros((x.shape[1], hidden), x.dtype) if given is None else _wide(given[:, d] if by_batch else given[d])
            for given in initial
        )
        made, state = _sweep(cell, rows, state, lengths, backwards=attrs["direction"] == "reverse" or d == 1)
        if y is not None:
            np.copyto(y[:, :, d].swapaxes(0, 1) if by_batch else y[:, d], made, casting="unsafe")
        for target, value in zip(finals, state, strict=True):
            if target is not None:
                np.copyto(target[:, d] if by_batch else target[d], value, casting="unsafe")


def _sweep(
    cell: Cell, rows: Array, state: tuple[Array, ...], lengths: Array | None, *, backwards: bool
) -> tuple[Array, tuple[Array, ...]]:
    """The hidden state after every step (steps, batch, hidden), 0 past a sequence's end, and the last state."""
    steps, batch = rows.shape[:2]
    times = np.arange(steps)[:, None]
    if lengths is not None and lengths.size and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise IndexRangeError(f"sequence_lens: holds {lengths.tolist()[:8]}, need lengths in [0, {steps}]")
    alive = None if lengths is None else times < lengths
    if backwards:  # each sequence turned within its own length; turning twice is turning back
        turned = np.where(times < lengths, lengths - 1 - times, times) if lengths is not None else steps - 1 - times
        rows = rows[turned, np.arange(batch)]
    made = np.zeros((steps, batch, state[0].shape[-1]), rows.dtype)
    for t in range(steps):
        new = cell(rows[t], state)
        if alive is None:
            made[t] = new[0]
        else:
            running = alive[t][:, None]
            np.copyto(made[t], new[0], where=running)
            new = tuple(np.where(running, after, before) for after, before in zip(new, state, strict=True))
        state = new
    return (made[turned, np.arange(batch)] if backwards else made), state


def _summed(b: Array | None, rows: int) -> Array | None:
    """The two biases of a gate only ever appear added."""
    return None if b is None else _wide(b[:, :rows]) + _wide(b[:, rows:])


def infer_lstm(
    x: Spec,
    w: Spec,
    r: Spec,
    b: Spec | None = None,
    sequence_lens: Spec | None = None,
    initial_h: Spec | None = None,
    initial_c: Spec | None = None,
    p: Spec | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Spec, ...]:
    """Y (steps, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden); layout 1 puts the batch first."""
    attrs = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "layout": layout,
    }
    y, last = _infer(_LSTM, x, w, r, b, sequence_lens, {"initial_h": initial_h, "initial_c": initial_c}, p, attrs)
    return y, last, last


def cost_lstm(out: tuple[Spec, ...], x: Spec, w: Spec, r: Spec, b: Spec | None = None, *more: Spec | None, **attrs: Any) -> Cost:
    """MACs: 4 gates · (inputs + hidden) a hidden unit and step. Others: 5 activations, 4 for the cell; 4 a bias, 6 peepholes."""
    return _cost(_LSTM, out, x, b, more[3] if len(more) > 3 else None)


def run_lstm(
    out: tuple[Array | None, ...],
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    **attrs: Any,
) -> None:
    """c = f·c + i·g, h = o·tanh(c); half precision in single."""
    chosen, hidden = _chosen(_LSTM, w.shape[0], attrs), r.shape[2]
    cells = [
        _lstm_cell(_wide(r[d]), None if p is None else _wide(p[d]).reshape(3, hidden), chosen[d], bool(attrs["input_forget"]))
        for d in range(w.shape[0])
    ]
    _run(out, x, w, _summed(b, 4 * hidden), sequence_lens, (initial_h, initial_c), cells, {**attrs, "hidden": hidden})


def _lstm_cell(r: Array, p: Array | None, activations: tuple[Activation, ...], coupled: bool) -> Cell:
    gate, cell_input, output = activations
    transposed, hidden = r.T, r.shape[1]

    def cell(rows: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        gates = np.matmul(h, transposed) + rows
        i, o, f, g = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
        if p is not None:
            i, f = i + p[0] * c, f + p[2] * c
        i = gate(i)
        c = (1 - i if coupled else gate(f)) * c + i * cell_input(g)
        if p is not None:
            o = o + p[1] * c
        return gate(o) * output(c), c

    return cell


def infer_gru(
    x: Spec,
    w: Spec,
    r: Spec,
    b: Spec | None = None,
    sequence_lens: Spec | None = None,
    initial_h: Spec | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Spec, ...]:
    """Y (steps, directions, batch, hidden) and Y_h (directions, batch, hidden); layout 1 puts the batch first."""
    attrs = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "layout": layout,
    }
    return _infer(_GRU, x, w, r, b, sequence_lens, {"initial_h": initial_h}, None, attrs)


def cost_gru(out: tuple[Spec, ...], x: Spec, w: Spec, r: Spec, b: Spec | None = None, *more: Spec | None, **attrs: Any) -> Cost:
    """MACs: 3 gates · (inputs + hidden) a hidden unit and step. Others: 3 activations, 5 for reset and blend; 3 a bias."""
    return _cost(_GRU, out, x, b)


def run_gru(
    out: tuple[Array | None, ...],
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    **attrs: Any,
) -> None:
    """h = (1 - z)·g + z·h; half precision in single."""
    chosen, hidden, linear = _chosen(_GRU, w.shape[0], attrs), r.shape[2], bool(attrs["linear_before_reset"])
    bias, inner = _summed(b, 3 * hidden), None
    if b is not None and bias is not None and linear:  # the recurrent bias of g is reset too, so it stays apart
        inner = _wide(b[:, 5 * hidden :])
        bias[:, 2 * hidden :] = b[:, 2 * hidden : 3 * hidden]
    cells = [_gru_cell(_wide(r[d]), None if inner is None else inner[d], chosen[d], linear) for d in range(w.shape[0])]
    _run(out, x, w, bias, sequence_lens, (initial_h,), cells, {**attrs, "hidden": hidden})


def _gru_cell(r: Array, inner: Array | None, activations: tuple[Activation, ...], linear: bool) -> Cell:
    gate, candidate = activations
    hidden = r.shape[1]
    all_gates, both, last = r.T, r[: 2 * hidden].T, r[2 * hidden :].T

    def cell(rows: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        recurrent = np.matmul(h, all_gates if linear else both)
        z, reset = (gate(recurrent[:, k : k + hidden] + rows[:, k : k + hidden]) for k in (0, hidden))
        if linear:
            proposed = recurrent[:, 2 * hidden :] if inner is None else recurrent[:, 2 * hidden :] + inner
            proposed = reset * proposed
        else:
            proposed = np.matmul(reset * h, last)
        return ((1 - z) * candidate(proposed + rows[:, 2 * hidden :]) + z * h,)

    return cell


def infer_rnn(
    x: Spec,
    w: Spec,
    r: Spec,
    b: Spec | None = None,
    sequence_lens: Spec | None = None,
    initial_h: Spec | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Spec, ...]:
    """Y (steps, directions, batch, hidden) and Y_h (directions, batch, hidden); layout 1 puts the batch first."""
    attrs = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "layout": layout,
    }
    return _infer(_RNN, x, w, r, b, sequence_lens, {"initial_h": initial_h}, None, attrs)


def cost_rnn(out: tuple[Spec, ...], x: Spec, w: Spec, r: Spec, b: Spec | None = None, *more: Spec | None, **attrs: Any) -> Cost:
    """MACs: inputs + hidden for a hidden unit and step. Others: 1 activation; 1 a bias."""
    return _cost(_RNN, out, x, b)


def run_rnn(
    out: tuple[Array | None, ...],
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    **attrs: Any,
) -> None:
    """h = tanh(x·W + h·R + b); half precision in single."""
    chosen, hidden = _chosen(_RNN, w.shape[0], attrs), r.shape[2]
    cells = [_rnn_cell(_wide(r[d]), chosen[d][0]) for d in range(w.shape[0])]
    _run(out, x, w, _summed(b, hidden), sequence_lens, (initial_h,), cells, {**attrs, "hidden": hidden})


def _rnn_cell(r: Array, activation: Activation) -> Cell:
    transposed = r.T
    return lambda rows, state: (activation(np.matmul(state[0], transposed) + rows),)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 7 `output_sequence` said whether Y is wanted; a graph says so by reading it."""
    return ({name: value for name, value in attrs.items() if name != "output_sequence"} if opset < 7 else attrs), {}


_LENGTHS = np.array([3, 1], np.int32)


def _cases(gates: int, unit_flops: int, **more: Any) -> tuple[Case, ...]:
    """5 steps of 2 sequences of 3 numbers, 4 hidden units."""
    w, r, b, rows = (1, gates * 4, 3), (1, gates * 4, 4), (1, gates * 8), gates * 4
    both = ((3, 2, 3), (2, rows, 3), (2, rows, 4), (2, 2 * rows), None, (2, 2, 4))
    plain, unit = ((5, 2, 3), w, r), 5 * 2 * 4
    macs, more = unit * gates * 7, {"hidden_size": 4, **more}
    return (
        Case("plain", inputs=plain, attrs=more, outputs=2, cost=Cost(macs, unit * unit_flops)),
        Case("bias", inputs=(*plain, b), attrs=more, outputs=2, cost=Cost(macs, unit * (unit_flops + gates))),
        Case("initial", inputs=(*plain, b, None, (1, 2, 4)), attrs=more, outputs=2),
        Case("reverse", inputs=(*plain, b), attrs={"direction": "reverse", **more}, outputs=2),
        Case("bidirectional", inputs=both, attrs={"direction": "bidirectional", **more}, outputs=2),
        Case("lengths", inputs=((3, 2, 3), w, r, b, _LENGTHS), attrs=more, outputs=2),
        Case("lengths_reverse", inputs=((3, 2, 3), w, r, b, _LENGTHS), attrs={"direction": "reverse", **more}, outputs=2),
        Case("batch_first", inputs=((2, 5, 3), w, r, b, None, (2, 1, 4)), attrs={"layout": 1, **more}, outputs=2),
        Case("clipped", inputs=(*plain, b), attrs={"clip": 0.5, **more}, outputs=2),
        Case("rows_differ", inputs=((5, 2, 3), (1, rows + 1, 3), r), attrs=more, raises=ShapeError),
        Case("inputs_differ", inputs=((5, 2, 2), w, r), attrs=more, raises=ShapeError),
        Case("hidden_size", inputs=plain, attrs={**more, "hidden_size": 5}, raises=AttributeValueError),
        Case("direction", inputs=plain, attrs={**more, "direction": "up"}, raises=AttributeValueError),
        Case("activation_unknown", inputs=plain, attrs={"activations": ("Cosh",) * 4, **more}, raises=AttributeValueError),
        Case("lengths_dtype", inputs=(*plain, b, np.array([1, 1])), attrs=more, raises=DTypeError),
    )


_H = {"hidden_size": 4}
_LSTM_CASES = (
    *_cases(4, 9),
    Case(
        "peepholes",
        inputs=((5, 2, 3), (1, 16, 3), (1, 16, 4), None, None, None, (1, 2, 4), (1, 12)),
        attrs=_H,
        outputs=3,
        cost=Cost(1120, 600),
    ),
    Case("coupled", inputs=((5, 2, 3), (1, 16, 3), (1, 16, 4)), attrs={**_H, "input_forget": 1}, outputs=3),
    Case(
        "activations",
        inputs=((5, 2, 3), (1, 16, 3), (1, 16, 4), (1, 32)),
        attrs={
            **_H,
            "activations": ("HardSigmoid", "LeakyRelu", "Softsign"),
            "activation_alpha": (0.25, 0.1),
            "activation_beta": (0.4,),
        },
        outputs=3,
    ),
)
_GRU_CASES = (
    *_cases(3, 8),
    Case("linear", inputs=((5, 2, 3), (1, 12, 3), (1, 12, 4), (1, 24)), attrs={**_H, "linear_before_reset": 1}, outputs=2),
    Case("linear_no_bias", inputs=((5, 2, 3), (1, 12, 3), (1, 12, 4)), attrs={**_H, "linear_before_reset": 1}, outputs=2),
)
_RNN_CASES = (
    *_cases(1, 1),
    Case("relu", inputs=((5, 2, 3), (1, 4, 3), (1, 4, 4)), attrs={**_H, "activations": ("Relu",)}, outputs=2),
    Case(
        "affine",
        inputs=((5, 2, 3), (1, 4, 3), (1, 4, 4)),
        attrs={**_H, "activations": ("Affine",), "activation_alpha": (0.5,), "activation_beta": (0.1,)},
        outputs=2,
    ),
)

OPS = (
    Op("LSTM", infer_lstm, cost_lstm, (Kernel("steps", run_lstm),), upgrade=upgrade, tolerance_eps=64, cases=_LSTM_CASES),
    Op("GRU", infer_gru, cost_gru, (Kernel("steps", run_gru),), upgrade=upgrade, tolerance_eps=64, cases=_GRU_CASES),
    Op("RNN", infer_rnn, cost_rnn, (Kernel("steps", run_rnn),), upgrade=upgrade, tolerance_eps=64, cases=_RNN_CASES),
)
