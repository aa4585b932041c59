"""Softmax, norms and reductions: of rows, or of columns where what is reduced lies apart, as the pixels of an image do."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graph.cuda.facts import F32, Facts
from graph.cuda.finishing import Finishing, behind, finish, finishing, matrix_written
from graph.cuda.layouts import is_aligned, matrix
from graph.cuda.lowering import Lowering, Option
from graph.cuda.rule import Rule
from graph.cuda.rules.conv import finishing_names
from graph.ir import Node
from graph.native.facts import optional_input
from graph.native.place import Viewed
from kernels.cuda.emit.reduce import Reduced
from kernels.cuda.families.candidates import row_candidates
from kernels.cuda.families.columns import Columns
from kernels.cuda.families.rows import RowOp, Rows
from kernels.native.memory.view import View

_ROWS: dict[str, RowOp] = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm",
}
_REDUCED: dict[str, Reduced] = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceL2": "l2",
    "ReduceSumSquare": "sum_square",
    "GlobalAveragePool": "mean",
    "GlobalMaxPool": "max",
}

FEW_ROWS, TEAM = 1000, 256  # rows that leave processors idle with a warp each are faster with a block of so many threads
LONG = 512  # elements of a column from which it is reduced in parts,
MANY_COLUMNS = 8192  # unless there are columns enough for all processors


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    first = node.attrs["axis"] % rank
    whole = node.op in ("LayerNormalization", "RMSNormalization") or node.attrs["coerce_2d"]
    return tuple(range(first, rank)) if whole else (first,)


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a softmax or a norm cannot run on a GPU, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    if any(node.outputs[1:]):
        return "outputs other than the first are used"
    if facts.computed(node.inputs[1:]):
        return "its scale and bias are not constants"
    rank = facts.spec(node.inputs[0]).rank
    size = prod(facts.spec(node.inputs[0]).shape[axis] for axis in _axes(node, rank))
    if any(name and facts.spec(name).elements != size for name in node.inputs[1:]):
        return "its scale or bias does not have the size of a row"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append a softmax or norm of rows."""
    shape = b.spec(node.inputs[0]).shape
    axes = _axes(node, len(shape))
    if axes[-1] != len(shape) - 1:
        _turned(b, node, axes[0])
        return
    size = prod(shape[axis] for axis in axes)
    x = b.under(node.inputs[0], lambda view: matrix(view, size), lambda view: view.reshaped((view.size // size, size)) or view)
    done = finishing(b, node, "rows", takes_bias=False) if len(axes) == 1 else behind(b, node)
    y, written = matrix_written(b, node.outputs[0], "rows")
    _append(b, node, x, written.under(matrix(written.view, size) or written.view), done)
    finish(b, node, y, done)


def _turned(b: Lowering, node: Node, axis: int) -> None:
    """Append a softmax over another dimension than the last, on a copy in which it is the last."""
    place = b.place(node.inputs[0])
    rank = len(place.view.shape)
    axes = [*(a for a in range(rank) if a != axis), axis]
    made = Viewed.new(node.inputs[0], [place.view.shape[a] for a in axes], b.dtype)
    b.copy(place.under(place.view.transposed(axes)), made)
    y = Viewed.new(node.outputs[0], made.view.shape, b.dtype)
    size = place.view.shape[axis]
    rows = View.dense((made.view.size // size, size))
    _append(b, node, made.under(rows), y.under(rows), Finishing())
    whole = y.under(y.view.transposed([axes.index(a) for a in range(rank)]))
    b.define(node.outputs[0], whole)
    finish(b, node, whole, behind(b, node))


def _append(b: Lowering, node: Node, x: Viewed, y: Viewed, done: Finishing) -> None:
    rows, columns = x.view.shape
    problem = Rows(rows, columns, x.view.strides[0], y.view.strides[0], done.strides)
    given = dict(zip(("scale", "bias"), node.inputs[1:], strict=False))
    names = {name: b.address(b.constant(b.constants[value], F32)) for name, value in given.items() if value}
    scale, bias = "scale" in names, "bias" in names
    first = problem.form(_ROWS[node.op], b.storage, scale=scale, bias=bias, expression=done.expression)
    forms = [first, *(form for form in row_candidates(problem, first) if form != first)]
    if rows < FEW_ROWS:
        forms.sort(key=lambda form: form.team != TEAM)
    names |= {"x": b.address(x), "y": b.address(y), **finishing_names(b, done)}
    epsilon = float(node.attrs.get("epsilon", 0.0))
    b.launch(
        "rows",
        *(
            Option(problem.launch(form, epsilon=epsilon, **names), (("held", str(form.held)), ("team", str(form.team))))
            for form in forms
        ),
    )


def refuses_reduction(node: Node, facts: Facts) -> str | None:
    """Return why a reduction cannot run on a GPU, or None."""
    if reason := facts.not_f32(node.inputs[0], node.outputs[0]):
        return reason
    if facts.computed(node.inputs[1:]):
        return "its axes are not constants"
    if not _reduced(node, facts):
        return "it reduces nothing"
    return facts.refuses_epilogue(node)


def _reduced(node: Node, facts: Facts) -> tuple[int, ...]:
    """Return the dimensions that a reduction goes over."""
    rank = facts.spec(node.inputs[0]).rank
    if node.op.startswith("Global"):
        return tuple(range(2, rank))
    axes = optional_input(node, 1)
    named = facts.constants[axes].reshape(-1).tolist() if axes else []
    if not named:
        return () if node.attrs["noop_with_empty_axes"] else tuple(range(rank))
    return tuple(sorted({int(axis) % rank for axis in named}))


def reduce(b: Lowering, node: Node) -> None:
    """Append a reduction of columns or of rows."""
    shape, axes = b.spec(node.inputs[0]).shape, _reduced(node, b.facts)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    place = b.place(node.inputs[0])
    columns = _as_columns(place.view, kept, axes) if is_aligned(place) else None
    value, out = node.outputs[0], b.spec(node.outputs[0]).shape
    y = Viewed.new(value, out, b.dtype)
    expression = finishing(b, node, "rows", takes_bias=False, most=0)
    if columns is not None:
        _reduce_columns(b, _REDUCED[node.op], place.under(columns), y, expression)
    else:
        x = _in_rows(b, node, kept, axes)
        rows = Rows(x.view.shape[0], x.view.shape[1], x.view.strides[0])
        form = rows.form(_REDUCED[node.op], b.storage, expression=expression.expression)
        b.launch("rows", Option(rows.launch(form, x=b.address(x), y=b.address(y))))
    b.define(value, y)
    finish(b, node, y, expression)


def _reduce_columns(b: Lowering, op: Reduced, x: Viewed, y: Viewed, done: Finishing) -> None:
    """Append a reduction of columns; of many that few blocks would share, in parts first."""
    outer, n, inner = x.view.shape
    outer_step, step, _ = x.view.strides
    parts = _parts(op, n, outer * inner)
    if parts > 1:
        partial = Viewed.new("parts", (outer * parts, inner), F32)
        whole = outer_step if outer > 1 else n * step
        if whole == n * step:
            first = Columns(outer * parts, n // parts, inner, step, n // parts * step)
            b.launch("columns", Option(first.launch(op, b.storage, "fp32", x=b.address(x), y=b.address(partial))))
            second = Columns(outer, parts, inner)
            made = second.launch(op, "fp32", b.storage, done.expression, x=b.address(partial), y=b.address(y))
            b.launch("columns", Option(made))
            return
    problem = Columns(outer, n, inner, step, outer_step if outer > 1 else None)
    made = problem.launch(op, b.storage, b.storage, done.expression, x=b.address(x), y=b.address(y))
    b.launch("columns", Option(made))


def _parts(op: Reduced, n: int, columns: int) -> int:
    """Return into how many parts to cut columns of n elements: so many that both reductions have few to do in a row."""
    if op not in ("sum", "mean", "max", "min") or n < LONG or columns > MANY_COLUMNS:
        return 1
    divisors = [part for part in range(1, n + 1) if n % part == 0]
    return min(divisors, key=lambda part: (abs(part * part - n), part))


def _as_columns(view: View, kept: Sequence[int], axes: Sequence[int]) -> View | None:
    """Return a view as (outer, reduced, inner), the inner elements side by side; None where it does not lie so."""
    least = min(view.strides[axis] for axis in axes if view.shape[axis] > 1) if any(view.shape[a] > 1 for a in axes) else 0
    inner = [axis for axis in kept if view.shape[axis] > 1 and view.strides[axis] < least]
    first = next((n for n, axis in enumerate(kept) if axis in inner), len(kept))
    outer = kept[:first]
    if not inner or any(axis not in inner and view.shape[axis] > 1 for axis in kept[first:]):
        return None
    turned = view.transposed((*outer, *axes, *kept[first:]))
    sizes = [prod(view.shape[a] for a in group) for group in (outer, axes, kept[first:])]
    seen = turned.reshaped(sizes)
    return seen if seen is not None and seen.strides[2] == 1 else None


def _in_rows(b: Lowering, node: Node, kept: Sequence[int], axes: Sequence[int]) -> Viewed:
    """Return what is reduced as rows, copied where it lies in another way."""
    place = b.place(node.inputs[0])
    turned = place.view.transposed((*kept, *axes))
    size = prod(place.view.shape[axis] for axis in axes)
    if is_aligned(place) and (seen := matrix(turned, size)) is not None:
        return place.under(seen)
    made = Viewed.new(node.inputs[0], turned.shape, b.dtype)
    b.copy(place.under(turned), made)
    return made.under(View.dense((turned.size // size, size)))


RULES = {
    **dict.fromkeys(_ROWS, Rule(refuses, lower)),
    **dict.fromkeys(_REDUCED, Rule(refuses_reduction, reduce)),
}
