"""Einsum: sums of products by index letters, as matrix products."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError, UnsupportedError
from kernels.half import in_single
from kernels.operands import NUMBERS, one_dtype
from kernels.record import record
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import twice
from kernels.spec import Array, Spec

_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")
_MOST_INPUTS = 32

Labels = tuple[str, ...]  # one a dimension: a letter, or "0", "1", … counted from the back for those that "..." stands for


@record
class Plan:
    """An equation on real shapes: labels of every input and of the output, and the size of every label."""

    inputs: tuple[Labels, ...]
    output: Labels
    sizes: dict[str, int]


def _labels(term: str, rank: int) -> Labels:
    """The term's labels for that rank. Raises ShapeError when it names more or fewer dimensions."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise ShapeError(f"Einsum: term {term!r} names {len(before) + len(after)} dimensions, its input has {rank}")
    return (*before, *map(str, reversed(range(hidden))), *after)


def parse(equation: str, shapes: Sequence[tuple[int, ...]]) -> Plan:
    """Parse the equation. Raises AttributeValueError where it is invalid, ShapeError where it does not fit the shapes."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not all(_TERM.fullmatch(term) for term in (*terms, right)):
        raise AttributeValueError(f"Einsum: equation is {equation[:80]!r}, need letters, '...', ',' and one '->'")
    if len(terms) != len(shapes) or len(shapes) > _MOST_INPUTS:
        raise ShapeError(
            f"Einsum: equation {equation[:80]!r} has {len(terms)} terms for {len(shapes)} inputs, at most {_MOST_INPUTS}"
        )
    inputs = tuple(_labels(term, len(shape)) for term, shape in zip(terms, shapes, strict=True))
    hidden = {sum(label.isdigit() for label in labels) for term, labels in zip(terms, inputs, strict=True) if "..." in term}
    if len(hidden) > 1:
        raise ShapeError(f"Einsum: '...' stands for {sorted(hidden)} dimensions in {equation[:80]!r}, need one number of them")
    sizes: dict[str, int] = {}
    for labels, shape in zip(inputs, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            known = sizes.setdefault(label, size)
            if known == 1:
                sizes[label] = size
            elif size not in (1, known):
                raise ShapeError(
                    f"Einsum: index {label!r} has sizes {known} and {size} in {equation[:80]!r}, need equal ones or 1"
                )
    dots = tuple(sorted((label for label in sizes if label.isdigit()), key=int, reverse=True))
    if arrow:
        before, has_dots, after = right.partition("...")
        output: Labels = (*before, *(dots if has_dots else ()), *after)
    else:
        every = [label for labels in inputs for label in labels]
        output = (*dots, *sorted(label for label in sizes if not label.isdigit() and every.count(label) == 1))
    if len(set(output)) != len(output) or not set(output) <= set(sizes):
        raise AttributeValueError(
            f"Einsum: the output of {equation[:80]!r} names {list(output)}, need indices of the inputs, once each"
        )
    return Plan(inputs, output, sizes)


def infer(*inputs: Spec | None, equation: str) -> Spec:
    """The sizes of the output's letters."""
    specs = [spec for spec in inputs if spec is not None]
    if not specs or len(specs) != len(inputs):
        raise ShapeError(f"Einsum: {len(specs)} of {len(inputs)} inputs are there, need 1 or more and none absent")
    require_dtype("Einsum: input 0", specs[0], NUMBERS)
    plan = parse(equation, [spec.shape for spec in specs])
    if len(plan.sizes) > 52:
        raise UnsupportedError(f"Einsum: {equation[:80]!r} has {len(plan.sizes)} indices, at most 52 are supported")
    return Spec(tuple(plan.sizes[label] for label in plan.output), one_dtype("Einsum", *specs))


def _later(plan: Plan, after: int) -> set[str]:
    """Labels still needed once the inputs before `after` are multiplied."""
    return set(plan.output).union(*plan.inputs[after:])


def cost(out: tuple[Spec, ...], *inputs: Spec, equation: str) -> Cost:
    """MACs: for every product of two, in order, the sizes of all their indices multiplied. One input: 1 per element."""
    plan = parse(equation, [spec.shape for spec in inputs])
    if len(inputs) == 1:
        return Cost(other_flops=0 if set(plan.output) == set(plan.inputs[0]) else inputs[0].elements)
    macs, live = 0, set(plan.inputs[0])
    for i, labels in enumerate(plan.inputs[1:], 1):
        live |= set(labels)
        macs += math.prod(plan.sizes[label] for label in live)
        live &= _later(plan, i + 1)
    return Cost(macs=macs)


def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec, equation: str) -> int:
    """Of each product of two, in order: both operands in the order of their product, the product, and the one before it."""
    plan = parse(equation, [spec.shape for spec in inputs])
    live, before, most = set(plan.inputs[0]), inputs[0].elements, inputs[0].elements
    for i, labels in enumerate(plan.inputs[1:], 1):
        live = (live | set(labels)) & (_later(plan, i + 1) | (live & set(labels)))
        summed = {label for label in live if label not in _later(plan, i + 1)}
        made = math.prod(plan.sizes[label] for label in live - summed)
        most = max(most, 2 * before + 2 * inputs[i].elements + made)
        live, before = live - summed, made
    return twice(out, *inputs) + most * max(out[0].dtype.itemsize, 4)


@in_single
def run(out: tuple[Array, ...], *inputs: Array, equation: str) -> None:
    """One after another, each product a batched matrix product."""
    (y,) = out
    plan = parse(equation, [x.shape for x in inputs])
    total, labels = _reduced(inputs[0], plan.inputs[0], _later(plan, 1), plan)
    for i, x in enumerate(inputs[1:], 1):
        right, right_labels = _reduced(x, plan.inputs[i], _later(plan, i + 1) | set(labels), plan)
        total, labels = _product(total, labels, right, right_labels, _later(plan, i + 1))
    total, labels = _reduced(total, labels, set(plan.output), plan)
    missing = [label for label in plan.output if label not in labels]  # of size 1 in every input, or repeated
    total = total.reshape((*total.shape, *[1] * len(missing)))
    names = (*labels, *missing)
    np.copyto(y, total.transpose([names.index(label) for label in plan.output]))


def _reduced(x: Array, labels: Labels, needed: set[str], plan: Plan) -> tuple[Array, Labels]:
    """Take diagonals, sum over labels that are not needed later, and drop axes of size 1 that are broadcast."""
    kept = [i for i, label in enumerate(labels) if not (x.shape[i] == 1 and plan.sizes[label] != 1)]
    x, labels = x.reshape([x.shape[i] for i in kept]), tuple(labels[i] for i in kept)
    wanted = tuple(label for label in dict.fromkeys(labels) if label in needed)
    if wanted == labels:
        return x, labels
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.einsum(x, [numbers[label] for label in labels], [numbers[label] for label in wanted], dtype=x.dtype), wanted


def _product(a: Array, a_labels: Labels, b: Array, b_labels: Labels, needed: set[str]) -> tuple[Array, Labels]:
    """Multiply a by b, summed over labels of both that are not needed later: (batch, rows, sum) @ (batch, sum, columns)."""
    shared = [label for label in a_labels if label in b_labels]
    batch, summed = [label for label in shared if label in needed], [label for label in shared if label not in needed]
    rows = [label for label in a_labels if label not in b_labels]
    columns = [label for label in b_labels if label not in a_labels]
    sizes = dict(zip(a_labels, a.shape, strict=True)) | dict(zip(b_labels, b.shape, strict=True))

    def laid(x: Array, labels: Labels, *groups: list[str]) -> Array:
        order = x.transpose([labels.index(label) for group in groups for label in group])
        return order.reshape([math.prod(sizes[label] for label in group) for group in groups])

    left, right = laid(a, a_labels, batch, rows, summed), laid(b, b_labels, batch, summed, columns)
    product = np.matmul(left, right) if left.shape[2] != 1 else left * right
    labels = (*batch, *rows, *columns)
    return product.reshape([sizes[label] for label in labels]), labels


def _equation(text: str) -> dict[str, Any]:
    return {"equation": text}


def _ints(*shape: int) -> Array:
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


EINSUM = Op(
    "Einsum",
    infer,
    cost,
    (Kernel("matmul", run, scratch_bytes=scratch_bytes),),
    tolerance_eps=16,
    cases=(
        Case("matmul", inputs=((3, 4), (4, 5)), attrs=_equation("ij,jk->ik"), cost=Cost(macs=60)),
        Case("attention", inputs=((2, 3, 4, 5), (2, 3, 6, 5)), attrs=_equation("bhqd,bhkd->bhqk"), cost=Cost(macs=720)),
        Case("heads_inside", inputs=((2, 4, 3, 5), (2, 6, 3, 5)), attrs=_equation("bqhd,bkhd->bhqk"), cost=Cost(macs=720)),
        Case("spaces_and_capitals", inputs=((2, 3), (3, 4)), attrs=_equation(" iA , A B -> B i")),
        Case("implicit", inputs=((2, 3), (3, 4)), attrs=_equation("zb,ba")),
        Case("transpose", inputs=((2, 3, 4),), attrs=_equation("ijk->kij"), cost=Cost()),
        Case("sum", inputs=((2, 3, 4),), attrs=_equation("ijk->j"), cost=Cost(other_flops=24)),
        Case("diagonal", inputs=((2, 3, 3),), attrs=_equation("...ii->...i")),
        Case("trace", inputs=((3, 3),), attrs=_equation("ii")),
        Case("dot", inputs=((4,), (4,)), attrs=_equation("i,i"), cost=Cost(macs=4)),
        Case("outer", inputs=((2,), (3,)), attrs=_equation("i,j->ij"), cost=Cost(macs=6)),
        Case("elementwise", inputs=((2, 3), (2, 3)), attrs=_equation("ij,ij->ij"), cost=Cost(macs=6)),
        Case("dots_broadcast", inputs=((2, 1, 3, 4), (1, 5, 4, 2)), attrs=_equation("...ij,...jk->...ik"), cost=Cost(macs=240)),
        Case("dots_summed_apart", inputs=((2, 3, 4), (4, 5)), attrs=_equation("...i,ij->...j")),
        Case("one_broadcast", inputs=((2, 1), (3, 4)), attrs=_equation("ij,jk->ik")),
        Case("three", inputs=((2, 3), (3, 4), (4, 5)), attrs=_equation("ij,jk,kl->il"), cost=Cost(macs=24 + 40)),
        Case("summed_in_one", inputs=((2, 3, 4), (3,)), attrs=_equation("ijk,j->i")),
        Case("integers", inputs=(_ints(2, 3), _ints(3, 2)), attrs=_equation("ij,jk->ik")),
        Case("empty_sum", inputs=((2, 0), (0, 3)), attrs=_equation("ij,jk->ik"), cost=Cost()),
        Case("sizes_differ", inputs=((2, 3), (4, 5)), attrs=_equation("ij,jk->ik"), raises=ShapeError),
        Case("rank_differs", inputs=((2, 3),), attrs=_equation("ijk->i"), raises=ShapeError),
        Case("dots_differ", inputs=((2, 1, 3), (3, 2)), attrs=_equation("...ij,...jk->...ik"), raises=ShapeError),
        Case("absent", inputs=((2, 3), None), attrs=_equation("ij,jk->ik"), raises=ShapeError),
        Case("terms_differ", inputs=((2, 3),), attrs=_equation("ij,jk->ik"), raises=ShapeError),
        Case("no_equation", inputs=((2, 3),), attrs=_equation("i1->i"), raises=AttributeValueError),
        Case("output_unknown", inputs=((2, 3),), attrs=_equation("ij->k"), raises=AttributeValueError),
    ),
)
