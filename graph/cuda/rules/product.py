"""Matrix products: with a constant second factor, or of two tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from graph.cuda.facts import Facts
from graph.cuda.finishing import Finishing, behind, finish, finishing, matrix_written
from graph.cuda.layouts import is_aligned
from graph.cuda.lowering import Lowering, Option
from graph.cuda.ranking import estimated_ns
from graph.cuda.rule import Rule
from graph.ir import Node
from graph.native.facts import optional_input
from graph.native.place import Viewed
from kernels.cuda.emit.descriptor import OTHERS
from kernels.cuda.families.candidates import candidates
from kernels.cuda.families.problem import Batch, Cut, Problem
from kernels.cuda.families.vector import MOST_ROWS, Vectors
from kernels.native.memory.view import View
from kernels.spec import Array

MOST_OPTIONS = 40  # of a product


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a product cannot run on a GPU, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    if min(facts.spec(name).rank for name in node.inputs[:2]) < 2:
        return "one of its factors is a vector"
    if node.op == "Gemm" and not _is_plain(node, facts):
        return "it is scaled, or its first factor is transposed"
    return facts.refuses_epilogue(node)


def _is_plain(node: Node, facts: Facts) -> bool:
    attrs, addend = node.attrs, optional_input(node, 2)
    scaled = attrs["alpha"] != 1 and node.inputs[1] not in facts.constants
    return not attrs["transA"] and not scaled and (not addend or attrs["beta"] == 1)


def lower(b: Lowering, node: Node) -> None:
    """Append a product."""
    if node.inputs[1] in b.constants and b.spec(node.inputs[1]).rank == 2:
        _weighted(b, node)
    else:
        _of_tensors(b, node)


def _weighted(b: Lowering, node: Node) -> None:
    """Append a product by a constant matrix; with it those of other constants that read the same and have nothing behind them."""
    joined = [node, *_beside(b, node)]
    matrices = [_weights(b, each) for each in joined]
    done = finishing(b, node, "rows", addend=optional_input(node, 2) if node.op == "Gemm" else "")
    x = b.matrix(node.inputs[0], "rows")
    if len(joined) == 1:
        y, written = matrix_written(b, node.outputs[0], "rows")
    else:
        written = _side_by_side(b, joined)
        y = written
    columns = sum(matrix.shape[0] for matrix in matrices)
    source = b.constants[node.inputs[1]]
    key = ("product", node.op, tuple(node.attrs.items()), tuple(id(b.constants[each.inputs[1]]) for each in joined[1:]))
    w = b.packed(source, key, lambda: np.concatenate(matrices) if len(matrices) > 1 else matrices[0])
    problem = Problem(
        x.view.shape[0], columns, x.view.shape[1], None, x.view.strides[0], None, written.view.strides[0], done.strides
    )
    launch_product(b, problem, x, w, written, done)
    finish(b, node, y, done)


def _weights(b: Lowering, node: Node) -> Array:
    """Return the constant factor as (columns, depth), scaled."""
    array = b.constants[node.inputs[1]]
    if node.op == "MatMul":
        return array.T
    turned = array if node.attrs["transB"] else array.T
    return turned if node.attrs["alpha"] == 1 else turned * np.float32(node.attrs["alpha"])


def _beside(b: Lowering, node: Node) -> list[Node]:
    """Return the later products of the same value by constants of the same depth, where none of all has an epilogue.

    One launch computes them side by side: three narrow products leave most of a GPU idle.
    """
    if node.epilogue or node.op != "MatMul":
        return []
    found = []
    for other in b.nodes[b.node + 1 :]:
        same = other.op == "MatMul" and not other.epilogue and other.inputs[0] == node.inputs[0]
        if same and other.inputs[1] in b.constants and b.spec(other.inputs[1]).rank == 2:
            found.append(other)
    names = [name for each in (node, *found) for name in each.outputs]
    if any(b.reserved(name) is not None for name in names):
        return []
    return found


def _side_by_side(b: Lowering, nodes: Sequence[Node]) -> Viewed:
    """Define the results of products as columns of one matrix, which is returned."""
    sizes = [b.spec(each.outputs[0]).shape[-1] for each in nodes]
    rows = prod(b.spec(nodes[0].outputs[0]).shape[:-1])
    whole, first = Viewed.new(nodes[0].outputs[0], (rows, sum(sizes)), b.dtype), 0
    for each, size in zip(nodes, sizes, strict=True):
        shape = b.spec(each.outputs[0]).shape
        part = whole.view.sliced(1, first, size).reshaped(shape)
        assert part is not None, f"{each.name}: columns of a matrix must be seen as {shape}"  # noqa: S101
        b.define(each.outputs[0], whole.under(part))
        b.done.add(each.name)
        first += size
    return whole


def launch_product(
    b: Lowering, problem: Problem, x: Viewed, w: Viewed, y: Viewed, done: Finishing, *, early: bool = True
) -> None:
    """Append a product in every way that the GPU has room for. early: whether w is a constant."""
    names = {"x": b.address(x), "w": b.address(w), "y": b.address(y)}
    if done.bias is not None:
        names["bias"] = b.address(done.bias)
    names |= dict(zip(OTHERS, (b.address(place) for place in done.others), strict=False))
    weights = (names["w"], problem.n * problem.k * b.dtype.itemsize) if early else None
    if problem.window is None and problem.batch is None and problem.m <= MOST_ROWS:
        few = Vectors(problem.m, problem.n, problem.k, *problem.strides, problem.others)
        form = few.form(b.storage, bias=done.bias is not None, expression=done.expression, early=early)
        b.launch("vector", Option(few.launch(form, **names)), weights=weights)
        return
    cuts = candidates(b.precision, problem, b.device, bias=done.bias is not None, expression=done.expression, early=early)
    ranked = sorted(((estimated_ns(cut, b.device), n, cut) for n, cut in enumerate(cuts)), key=lambda found: found[:2])
    b.launch("product", *_options(b, [(ns, cut) for ns, _, cut in ranked[:MOST_OPTIONS]], names), weights=weights)


def _options(b: Lowering, ranked: Sequence[tuple[float, Cut]], names: Mapping[str, str]) -> Iterator[Option]:
    counters = None
    for ns, cut in ranked:
        mine = dict(names)
        if cut.meets:
            if counters is None:
                most = max(each.counter_bytes for _, each in ranked)
                counters = b.address(b.cleared("counters", (most,), np.dtype(np.uint8)))
            mine |= {"partial": b.address(b.scratch("partial", cut.partial_bytes)), "counters": counters}
        tile = cut.form.tile.name + ("g" if cut.form.groups else "")
        params = ("cluster", str(cut.form.cluster)), ("slices", str(cut.slices)), ("tile", tile)
        yield Option(cut.launch(**mine), params, ns)


def _of_tensors(b: Lowering, node: Node) -> None:
    """Append products of two tensors, one for each item of their batch."""
    shape = b.spec(node.outputs[0]).shape
    turned = node.op == "Gemm" and node.attrs["transB"]
    x = _factor(b, node.inputs[0], turned=False)
    w = _factor(b, node.inputs[1], turned=not turned)
    y = b.new(node.outputs[0], "rows")
    if not (y.view.strides[-1] == 1 or shape[-1] == 1) or not is_aligned(y):
        y = Viewed.new(node.outputs[0], shape, b.dtype)
        b.define(node.outputs[0], y)
    batch = _batch(shape[:-2], [x.view, w.view, y.view])
    if batch is None:
        x, w = (_dense_factor(b, value, place, shape) for value, place in zip(node.inputs, (x, w), strict=False))
        batch = _batch(shape[:-2], [x.view, w.view, y.view])
    assert batch is not None, f"{node.name}: dense factors must be a batch"  # noqa: S101
    (outer, inner), (x_steps, w_steps, y_steps) = batch
    items = Batch(outer, inner, x_steps, w_steps, y_steps) if outer * inner > 1 else None
    x_stride, w_stride, y_stride = (max(place.view.strides[-2], place.view.shape[-1]) for place in (x, w, y))
    problem = Problem(shape[-2], shape[-1], x.view.shape[-1], None, x_stride, w_stride, y_stride, batch=items)
    launch_product(b, problem, x, w, y, Finishing(), early=False)
    finish(b, node, y, behind(b, node, optional_input(node, 2) if node.op == "Gemm" else ""))


def _factor(b: Lowering, value: str, *, turned: bool) -> Viewed:
    """Return a factor whose rows are elements of the depth side by side. turned: whether those are its columns now."""
    rank = b.spec(value).rank
    axes = (*range(rank - 2), rank - 1, rank - 2) if turned else tuple(range(rank))

    def seen(view: View) -> View | None:
        found = view.transposed(axes)
        return found if found.strides[-1] == 1 or found.shape[-1] == 1 else None

    place = next((p for p in [b.place(value)] if is_aligned(p) and seen(p.view) is not None), None)
    if place is not None:
        return place.under(place.view.transposed(axes))
    source = b.place(value)
    made = Viewed.new(value, [source.view.shape[axis] for axis in axes], b.dtype)
    b.copy(source.under(source.view.transposed(axes)), made)
    return made


def _dense_factor(b: Lowering, value: str, place: Viewed, shape: Sequence[int]) -> Viewed:
    """Copy a factor into memory without gaps, repeated for every item of the batch."""
    made = Viewed.new(value, (*shape[:-2], *place.view.shape[-2:]), b.dtype)
    b.copy(place, made)
    return made


def _batch(sizes: Sequence[int], views: Sequence[View]) -> tuple[tuple[int, int], list[tuple[int, int]]] | None:
    """Return the sizes of two levels of a batch, and the steps of each view; None where two levels do not say it."""
    rank = len(sizes)
    steps = [view.broadcast((*sizes, *view.shape[-2:])).strides[:rank] for view in views]
    kept = [axis for axis in range(rank) if sizes[axis] > 1]
    for at in range(len(kept) + 1):
        halves = kept[:at], kept[at:]
        merged = [[_merged([sizes[a] for a in half], [step[a] for a in half]) for half in halves] for step in steps]
        if all(part is not None for parts in merged for part in parts):
            outer, inner = (prod(sizes[a] for a in half) for half in halves)
            return (outer, inner), [(parts[0] or 0, parts[1] or 0) for parts in merged]
    return None


def _merged(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the stride of dimensions as one; None where no stride says them."""
    for n in range(len(sizes) - 1):
        if strides[n] != sizes[n + 1] * strides[n + 1]:
            return None
    return strides[-1] if strides else 0


RULES = dict.fromkeys(("MatMul", "Gemm"), Rule(refuses, lower))
