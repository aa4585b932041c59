"""Kernels of LSTM, GRU and RNN against their operators in float64, over poisoned memory with gaps between the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.families.recurrent import (
    Cell,
    Columns,
    Recurrent,
    emit_recurrent,
    inner_bias,
    pack_recurrent,
    project_bias,
    project_weights,
    recurrent_tile,
)
from kernels.native.memory.view import View
from kernels.ops.recurrent import activation_expressions
from kernels.registry import evaluate, find
from tests.kernels.native.reference import assert_close, assert_only_written, lay, run_kernel, seen

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
GAP = 3
FORMS = [  # op, attributes, and whether there are peepholes and lengths
    ("LSTM", {}, False, False),
    ("LSTM", {"input_forget": 1}, True, False),
    ("LSTM", {"clip": 0.3}, False, True),
    ("GRU", {}, False, False),
    ("GRU", {"linear_before_reset": 1}, False, False),
    ("GRU", {}, False, True),
    ("RNN", {}, False, False),
    ("RNN", {"activations": ("Affine",), "activation_alpha": (0.5,), "activation_beta": (0.1,)}, False, True),
]
IDS = ["lstm", "peepholes", "lstm-lengths", "gru", "linear-gru", "gru-lengths", "rnn", "rnn-lengths"]


def cell_of(op, attrs, peepholes, lengths):
    kind, linear = op.lower(), bool(attrs.get("linear_before_reset"))
    (expressions,) = set(activation_expressions(op, find(op).bind(attrs)))
    return Cell(kind, expressions, peepholes, bool(attrs.get("input_forget")), linear, lengths)


def gapped(*shape):
    """Return a view whose rows have gaps behind them."""
    *outer, last = shape
    dense = View.dense((*outer, last + GAP))
    return View(shape, dense.strides)


def layer(cell, steps, batch, hidden, directions, backwards_from, isa):
    columns = Columns(cell, hidden, recurrent_tile(cell, batch, hidden, isa), isa.lanes)
    state = gapped(directions, batch, hidden)
    c = state if cell.has_c else None
    projected, y = gapped(steps, directions, batch, columns.count), gapped(steps, directions, batch, hidden)
    return columns, Recurrent(cell, projected, y, state, state, c, c, backwards_from)


def check(form, isa, steps, batch, inputs, hidden, direction="forward"):
    """Run a layer's kernel and compare it with the operator in float64; lengths are random where the form has them."""
    op, attrs, peepholes, lengths = form
    directions, rng = 2 if direction == "bidirectional" else 1, np.random.default_rng(0)
    attrs = {**attrs, "direction": direction}
    if "activations" in attrs:
        attrs |= {
            name: attrs[name] * directions for name in ("activations", "activation_alpha", "activation_beta") if name in attrs
        }
    cell, gates = cell_of(op, attrs, peepholes, lengths), GATES[op]
    columns, what = layer(cell, steps, batch, hidden, directions, 0 if direction == "reverse" else 1, isa)
    draw = lambda *shape: np.asarray(rng.uniform(-1, 1, shape) / np.sqrt(shape[-1]), np.float32)  # noqa: E731
    x, w, r, b = (
        draw(steps, batch, inputs),
        draw(directions, gates * hidden, inputs),
        draw(directions, gates * hidden, hidden),
        draw(directions, 2 * gates * hidden),
    )
    h, c, p = draw(directions, batch, hidden), draw(directions, batch, hidden), draw(directions, 3 * hidden)
    counts = rng.integers(0, steps + 1, batch).astype(np.int32)
    given = [x, w, r, b, counts if lengths else None, h, *([c] if cell.has_c else []), *([p] if peepholes else [])]
    exact = evaluate(find(op), [a if a is None or a is counts else a.astype(np.float64) for a in given], attrs)
    projected = x.astype(np.float64) @ project_weights(columns, w).T.astype(np.float64) + project_bias(columns, b)
    split = projected.reshape(steps, batch, directions, columns.count).transpose(0, 2, 1, 3)
    state = lambda: np.full(what.h.span + GAP, np.nan, np.float32)  # noqa: E731
    y, last_h, last_c, fault = np.full(what.y.span + GAP, np.nan, np.float32), state(), state(), np.zeros(1, np.int64)
    extras = {"c": lay(what.h, c), "last_c": last_c} if cell.has_c else {}
    extras |= {"p": p} if peepholes else {}
    extras |= {"inner": inner_bias(columns, b)} if cell.linear else {}
    extras |= {"lengths": counts, "fault": fault} if lengths else {}
    run_kernel(
        emit_recurrent(what, columns.tile, isa),
        isa,
        projected=lay(what.projected, split),
        w=pack_recurrent(columns, r),
        h=lay(what.h, h),
        last_h=last_h,
        y=y,
        **extras,
    )
    results = [(what.y, y), (what.h, last_h), *([(what.h, last_c)] if cell.has_c else [])]
    for (view, memory), wanted in zip(results, exact, strict=True):
        assert_close(seen(view, memory), wanted, hidden * 4)
        assert_only_written(view, memory)
    assert not fault[0]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_cells_in_every_direction(isa, form, direction):
    check(form, isa, 5, 3, 4, isa.lanes + 1, direction)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[3], FORMS[4], FORMS[6]], ids=["lstm", "gru", "linear-gru", "rnn"])
def test_tails_of_hidden_units_and_batches(isa, form):
    for hidden, batch in itertools.product((1, isa.lanes - 1, isa.lanes, 3 * isa.lanes + 2), (1, 2, 5)):
        check(form, isa, 2, batch, 3, hidden)


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_one_kernel_serves_all_sizes(isa, form):
    kernels = []
    for steps, batch, hidden, directions in ((1, 5, 16 * isa.lanes, 1), (40, 9, 17 * isa.lanes + 1, 2), (7, 30, 999, 1)):
        columns, what = layer(cell_of(*form), steps, batch, hidden, directions, 1, isa)
        kernels.append(emit_recurrent(what, columns.tile, isa))
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) == len(kernels)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layer(isa, data):
    size = lambda high: data.draw(st.integers(1, high))  # noqa: E731
    form, direction = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    check(form, isa, size(6), size(9), size(5), size(3 * isa.lanes + 3), direction)


@pytest.mark.parametrize("length", [-1, 4, 2**31 - 1])
def test_a_length_that_cannot_be_is_reported_and_counts_as_the_nearest(isa, length):
    cell = cell_of(*FORMS[7])
    columns, what = layer(cell, 3, 2, 4, 1, 1, isa)
    fault, y = np.zeros(1, np.int64), np.zeros(what.y.span + GAP, np.float32)
    weights = pack_recurrent(columns, np.zeros((1, 4, 4), np.float32))
    states = {"h": lay(what.h, np.ones((1, 2, 4))), "last_h": np.zeros(what.h.span, np.float32)}
    projected = lay(what.projected, np.ones((3, 1, 2, columns.count)))
    lengths = np.array([2, length], np.int32)
    run_kernel(
        emit_recurrent(what, columns.tile, isa), isa, projected=projected, w=weights, y=y, lengths=lengths, fault=fault, **states
    )
    assert fault[0] == length
    steps = seen(what.y, y)[:, 0, 1, 0] != 0
    assert steps.tolist() == [length > 0] * 3


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_tiles_do_not_spill(tuned, batch):
    """Of a cell that does not multiply, so that the loops which do are those of the tile."""
    columns, what = layer(cell_of("RNN", {"activations": ("Relu",)}, peepholes=False, lengths=False), 8, batch, 256, 1, 1, tuned)
    assert generate(emit_recurrent(what, columns.tile, tuned).ir, tuned, count_spills=True).spills <= SPILL_LIMIT
