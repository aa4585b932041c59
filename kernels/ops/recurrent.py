"""LSTM, GRU and RNN: one matrix product for all inputs, then one per step for the state, in one or both directions.

The three ops are one computation around a cell that makes the next state of the last one; `_CELLS` lists what differs.
Gates stand in the order of ONNX's weights: LSTM i o f g, GRU z r g. Half precisions are computed in single.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from kernels.attributes import lacks, takes
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.expression import FLOAT, Draft, Expression, Term
from kernels.half import is_half
from kernels.operands import one_dtype, one_of
from kernels.record import record
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import moved_bytes, times
from kernels.spec import FLOATS, Array, Spec

Activation = Callable[[Array], Array]
State = tuple[Array, ...]  # the hidden state (batch, hidden), and for LSTM the cell state
Step = Callable[[Array, State], State]  # projected inputs of one step (batch, gates · hidden), and the state before it


def _sigmoid(x: Array) -> Array:
    y = np.exp(-x)
    y += 1
    return np.reciprocal(y, out=y)


def _named(op: str) -> Callable[..., Term]:
    return lambda draft, x, *numbers: draft(op, x, parameters=numbers)


def _express_affine(draft: Draft, x: Term, a: float, b: float) -> Term:
    return draft("add", draft("mul", x, draft.constant(a, FLOAT)), draft.constant(b, FLOAT))


def _express_scaled_tanh(draft: Draft, x: Term, a: float, b: float) -> Term:
    return draft("mul", draft("tanh", draft("mul", x, draft.constant(b, FLOAT))), draft.constant(a, FLOAT))


@record
class _Function:
    """One of ONNX's activations. defaults: of those of alpha and beta that it takes. express: the formula as an expression."""

    defaults: tuple[float, ...]
    formula: Callable[..., Array]
    express: Callable[..., Term]


_ACTIVATIONS: Mapping[str, _Function] = MappingProxyType(
    {
        "relu": _Function((), lambda x: np.maximum(x, 0), _named("relu")),
        "tanh": _Function((), np.tanh, _named("tanh")),
        "sigmoid": _Function((), _sigmoid, _named("sigmoid")),
        "affine": _Function((1.0, 0.0), lambda x, a, b: x * a + b, _express_affine),
        "leakyrelu": _Function((0.01,), lambda x, a: np.where(x < 0, x * a, x), _named("leaky_relu")),
        "thresholdedrelu": _Function((1.0,), lambda x, a: np.where(x > a, x, x.dtype.type(0)), _named("thresholded_relu")),
        "scaledtanh": _Function((1.0, 1.0), lambda x, a, b: np.tanh(x * b) * a, _express_scaled_tanh),
        "hardsigmoid": _Function((0.2, 0.5), lambda x, a, b: np.clip(x * a + b, 0, 1), _named("hard_sigmoid")),
        "elu": _Function((1.0,), lambda x, a: np.where(x < 0, np.expm1(np.minimum(x, 0)) * a, x), _named("elu")),
        "softsign": _Function((), lambda x: x / (1 + np.abs(x)), _named("softsign")),
        "softplus": _Function((), lambda x: np.logaddexp(x, x.dtype.type(0)), _named("softplus")),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The attributes of the three ops. `input_forget` is LSTM's alone, `linear_before_reset` GRU's."""

    activation_alpha: tuple[float, ...] | None = None
    activation_beta: tuple[float, ...] | None = None
    activations: tuple[str, ...] | None = None
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None
    input_forget: int = 0
    layout: int = 0
    linear_before_reset: int = 0

    @property
    def directions(self) -> int:
        """The number of directions in which the sequence is read."""
        return 2 if self.direction == "bidirectional" else 1


@record
class Parameters:
    """The recurrent parameters of one direction.

    r: (gates · hidden, hidden). p: peepholes (3, hidden) of i, o and f, or None. inner: the recurrent bias (hidden) of the last
    gate where it stays apart from the others, or None.
    """

    r: Array
    p: Array | None
    inner: Array | None


@record
class Cell:
    """The differences between the three ops.

    activations: defaults in ONNX's order. inputs, attributes: those that not all three ops have. unit_flops: per hidden unit and
    step, without biases and peepholes; counted: the operations among them, as text. step: makes the step of one direction.
    """

    name: str
    gates: int
    activations: tuple[str, ...]
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    unit_flops: int
    counted: str
    step: Callable[[Parameters, tuple[Activation, ...], Options], Step]


def _lstm_step(parameters: Parameters, activations: tuple[Activation, ...], options: Options) -> Step:
    """c = f·c + i·g, h = o·tanh(c)."""
    gate, cell_input, output = activations
    transposed, hidden, p = parameters.r.T, parameters.r.shape[1], parameters.p

    def step(rows: Array, state: State) -> State:
        h, c = state
        gates = np.matmul(h, transposed) + rows
        i, o, f, g = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
        if p is not None:
            i, f = i + p[0] * c, f + p[2] * c
        i = gate(i)
        c = (1 - i if options.input_forget else gate(f)) * c + i * cell_input(g)
        if p is not None:
            o = o + p[1] * c
        return gate(o) * output(c), c

    return step


def _gru_step(parameters: Parameters, activations: tuple[Activation, ...], options: Options) -> Step:
    """h = (1 - z)·g + z·h, where r resets h before g's product, or the product with `linear_before_reset`."""
    gate, candidate = activations
    r, hidden, inner, linear = parameters.r, parameters.r.shape[1], parameters.inner, bool(options.linear_before_reset)
    all_gates, both, last = r.T, r[: 2 * hidden].T, r[2 * hidden :].T

    def step(rows: Array, state: State) -> State:
        (h,) = state
        recurrent = np.matmul(h, all_gates if linear else both)
        z, reset = (gate(recurrent[:, k : k + hidden] + rows[:, k : k + hidden]) for k in (0, hidden))
        if linear:
            proposed = recurrent[:, 2 * hidden :] if inner is None else recurrent[:, 2 * hidden :] + inner
            proposed = reset * proposed
        else:
            proposed = np.matmul(reset * h, last)
        return ((1 - z) * candidate(proposed + rows[:, 2 * hidden :]) + z * h,)

    return step


def _rnn_step(parameters: Parameters, activations: tuple[Activation, ...], options: Options) -> Step:
    """h = tanh(x·W + h·R + b)."""
    transposed, (activation,) = parameters.r.T, activations
    return lambda rows, state: (activation(np.matmul(state[0], transposed) + rows),)


_CELLS = (
    Cell(
        "LSTM",
        4,
        ("Sigmoid", "Tanh", "Tanh"),
        ("initial_c", "p"),
        ("input_forget",),
        9,
        "5 activations, 4 for the cell",
        _lstm_step,
    ),
    Cell("GRU", 3, ("Sigmoid", "Tanh"), (), ("linear_before_reset",), 8, "3 activations, 5 for reset and blend", _gru_step),
    Cell("RNN", 1, ("Tanh",), (), (), 1, "1 activation", _rnn_step),
)
_SOME_INPUTS = {name for cell in _CELLS for name in cell.inputs}
_SOME_ATTRIBUTES = {name for cell in _CELLS for name in cell.attributes}


def _infer(cell: Cell) -> Callable[..., tuple[Spec, ...]]:
    shared = {field.name for field in fields(Options)} - _SOME_ATTRIBUTES

    @takes(Options, *shared, *cell.attributes)
    @lacks(*_SOME_INPUTS.difference(cell.inputs))
    def infer(
        x: Spec,
        w: Spec,
        r: Spec,
        b: Spec | None = None,
        sequence_lens: Spec | None = None,
        initial_h: Spec | None = None,
        initial_c: Spec | None = None,
        p: Spec | None = None,
        **attrs: Any,
    ) -> tuple[Spec, ...]:
        """Y (steps, directions, batch, hidden), Y_h (directions, batch, hidden), LSTM's Y_c like it; layout 1: batch first."""
        options = Options(**attrs)
        floats = {"x": x, "w": w, "r": r, "b": b, "initial_h": initial_h, "initial_c": initial_c, "p": p}
        _check_options(cell, options)
        require_dtype(f"{cell.name}: x", x, FLOATS)
        one_dtype(cell.name, *(spec for spec in floats.values() if spec is not None))
        if x.rank != 3 or w.rank != 3 or r.rank != 3:
            raise ShapeError(f"{cell.name}: x is {x}, w is {w}, r is {r}, need three axes each")
        steps, batch = x.shape[1::-1] if options.layout else x.shape[:2]
        d, hidden, rows = options.directions, r.shape[2], cell.gates * r.shape[2]
        state = (batch, d, hidden) if options.layout else (d, batch, hidden)
        wanted = {
            "w": (d, rows, x.shape[2]),
            "r": (d, rows, hidden),
            "b": (d, 2 * rows),
            "p": (d, 3 * hidden),
            "sequence_lens": (batch,),
            "initial_h": state,
            "initial_c": state,
        }
        given = {**floats, "sequence_lens": sequence_lens}
        for label, shape in wanted.items():
            spec = given[label]
            if spec is not None and spec.shape != shape:
                raise ShapeError(f"{cell.name}: {label} is {spec}, need {list(shape)} for x {x} and {hidden} hidden units")
        if sequence_lens is not None and sequence_lens.dtype != np.int32:
            raise DTypeError(f"{cell.name}: sequence_lens is {sequence_lens}, need int32")
        if options.hidden_size not in (None, hidden):
            raise AttributeValueError(f"{cell.name}: hidden_size is {options.hidden_size}, need {hidden} as in r {r}")
        y = (batch, steps, d, hidden) if options.layout else (steps, d, batch, hidden)
        last = Spec(state, x.dtype)
        return Spec(y, x.dtype), *[last] * (2 if "initial_c" in cell.inputs else 1)

    return infer


def _check_options(cell: Cell, options: Options) -> None:
    one_of(f"{cell.name}: attribute direction", options.direction, ("forward", "reverse", "bidirectional"))
    one_of(f"{cell.name}: attribute layout", options.layout, (0, 1))
    if options.clip is not None and not options.clip >= 0:
        raise AttributeValueError(f"{cell.name}: clip is {options.clip}, need 0 or more")
    _chosen(cell, options)


@record
class _Chosen:
    """An activation with its numbers, whose argument is limited to [-clip, clip] first."""

    function: _Function
    numbers: tuple[float, ...]
    clip: float | None

    def __call__(self, x: Array) -> Array:
        limited = x if self.clip is None else np.clip(x, x.dtype.type(-self.clip), x.dtype.type(self.clip))
        return self.function.formula(limited, *(x.dtype.type(value) for value in self.numbers))

    @property
    def expression(self) -> Expression:
        """The same, of one operand in single precision."""
        draft = Draft()
        x = limited = draft.operand("x", FLOAT)
        if self.clip is not None:
            limited = draft("clip", x, parameters=(-self.clip, self.clip))
        return draft.finish(self.function.express(draft, limited, *self.numbers), ("x",))[1]


def _chosen(cell: Cell, options: Options) -> list[tuple[_Chosen, ...]]:
    """The activations of each direction. Every function that has parameters takes the next of alpha and beta, or its default."""
    each, directions = len(cell.activations), options.directions
    names = tuple(options.activations or cell.activations * directions)
    if len(names) != each * directions:
        raise AttributeValueError(f"{cell.name}: activations are {names}, need {each * directions}")
    alphas, betas = iter(options.activation_alpha or ()), iter(options.activation_beta or ())
    found = [_activation(cell.name, name, alphas, betas, options.clip) for name in names]
    return [tuple(found[i * each : (i + 1) * each]) for i in range(directions)]


def _activation(op: str, name: str, alphas: Iterator[float], betas: Iterator[float], clip: float | None) -> _Chosen:
    one_of(f"{op}: activation", name.lower(), _ACTIVATIONS)
    function = _ACTIVATIONS[name.lower()]
    given = [next(values, default) for values, default in zip((alphas, betas), function.defaults, strict=False)]
    return _Chosen(function, tuple(map(float, given)), clip)


def activation_expressions(op: str, attrs: Mapping[str, Any]) -> list[tuple[Expression, ...]]:
    """Return the activations of each direction of an LSTM, GRU or RNN, in ONNX's order, as expressions of one fp32 operand."""
    cell = next(cell for cell in _CELLS if cell.name == op)
    return [tuple(each.expression for each in direction) for direction in _chosen(cell, Options(**attrs))]


def _cost(cell: Cell) -> Callable[..., Cost]:
    def cost(
        out: tuple[Spec, ...],
        x: Spec,
        w: Spec,
        r: Spec,
        b: Spec | None = None,
        sequence_lens: Spec | None = None,
        initial_h: Spec | None = None,
        initial_c: Spec | None = None,
        p: Spec | None = None,
        **attrs: Any,
    ) -> Cost:
        units = out[0].elements  # every step of every sequence, however long its `sequence_lens` says it is
        per_unit = cell.unit_flops + (cell.gates if b is not None else 0) + (6 if p is not None else 0)
        return Cost(macs=units * cell.gates * (x.shape[2] + out[0].shape[-1]), other_flops=units * per_unit)

    biases = f"{cell.gates} for biases" + (", 6 for peepholes" if "p" in cell.inputs else "")
    cost.__doc__ = f"MACs: {cell.gates} · (inputs + hidden) for each hidden unit and step. Others: {cell.counted}; {biases}."
    return cost


def _scratch_bytes(cell: Cell) -> Callable[..., int]:
    def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> int:
        """The projected inputs of one direction, in two orders, and the state of every step."""
        return times(3)(out, *inputs) + 2 * cell.gates * moved_bytes(out[0])

    return scratch_bytes


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if is_half(array.dtype) else array


def _run(cell: Cell) -> Callable[..., None]:
    def run(
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
        """In each direction: project all inputs at once, step through time, write the outputs that are read."""
        options, hidden = Options(**attrs), r.shape[2]
        by_batch, activations = bool(options.layout), _chosen(cell, options)
        bias, inner = (None, None) if b is None else _biases(_wide(b), hidden, apart=bool(options.linear_before_reset))
        initial = (initial_h, initial_c) if "initial_c" in cell.inputs else (initial_h,)
        x = _wide(x.swapaxes(0, 1) if by_batch else x)
        y, finals = out[0], (*out[1:], None, None)[: len(initial)]
        for d in range(options.directions):
            peepholes = None if p is None else _wide(p[d]).reshape(3, hidden)
            parameters = Parameters(_wide(r[d]), peepholes, None if inner is None else inner[d])
            rows = np.matmul(x, _wide(w[d]).T)
            if bias is not None:
                rows += bias[d]
            state = tuple(
                np.zeros((x.shape[1], hidden), x.dtype) if given is None else _wide(given[:, d] if by_batch else given[d])
                for given in initial
            )
            step, backwards = cell.step(parameters, activations[d], options), options.direction == "reverse" or d == 1
            made, state = _sweep(step, rows, state, sequence_lens, backwards=backwards)
            if y is not None:
                np.copyto(y[:, :, d].swapaxes(0, 1) if by_batch else y[:, d], made, casting="unsafe")
            for target, value in zip(finals, state, strict=True):
                if target is not None:
                    np.copyto(target[:, d] if by_batch else target[d], value, casting="unsafe")

    return run


def _biases(b: Array, hidden: int, *, apart: bool) -> tuple[Array, Array | None]:
    """Return the sum of both biases (directions, gates · hidden), and the state's bias of the last gate if kept apart.

    GRU's `linear_before_reset` resets the state's bias of g too. All other biases of the state are added to those of the input.
    """
    rows = b.shape[1] // 2
    total = b[:, :rows] + b[:, rows:]
    if not apart:
        return total, None
    total[:, rows - hidden :] = b[:, rows - hidden : rows]
    return total, b[:, 2 * rows - hidden :]


def check_lengths(subject: str, lengths: Array, steps: int) -> None:
    """Raise IndexRangeError unless every sequence has from 0 to `steps` steps."""
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise IndexRangeError(f"{subject}: holds {lengths.tolist()[:8]}, need lengths in [0, {steps}]")


def _sweep(step: Step, rows: Array, state: State, lengths: Array | None, *, backwards: bool) -> tuple[Array, State]:
    """The hidden state after every step (steps, batch, hidden), 0 past a sequence's end, and the last state."""
    steps, batch = rows.shape[:2]
    times = np.arange(steps)[:, None]
    if lengths is not None:
        check_lengths("sequence_lens", lengths, steps)
    alive = None if lengths is None else times < lengths
    if backwards:  # reverse each sequence within its length; doing so twice restores it
        turned = np.where(times < lengths, lengths - 1 - times, times) if lengths is not None else steps - 1 - times
        rows = rows[turned, np.arange(batch)]
    made = np.zeros((steps, batch, state[0].shape[-1]), rows.dtype)
    for t in range(steps):
        new = step(rows[t], state)
        if alive is None:
            made[t] = new[0]
        else:
            running = alive[t][:, None]
            np.copyto(made[t], new[0], where=running)
            new = tuple(np.where(running, after, before) for after, before in zip(new, state, strict=True))
        state = new
    return (made[turned, np.arange(batch)] if backwards else made), state


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

_CASES = {"LSTM": _LSTM_CASES, "GRU": _GRU_CASES, "RNN": _RNN_CASES}

OPS = tuple(
    Op(
        cell.name,
        _infer(cell),
        _cost(cell),
        (Kernel("steps", _run(cell), scratch_bytes=_scratch_bytes(cell)),),
        upgrade=upgrade,
        tolerance_eps=64,
        cases=_CASES[cell.name],
    )
    for cell in _CELLS
)
