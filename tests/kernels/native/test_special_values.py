"""Every expression that an operator gives of itself on zeros, denormals, infinities, NaN and the largest numbers.

Native code computes it with denormals and with denormals as 0, as programs do, and is compared with the op at float64. Results
may be off by the smallest normal number; where denormals count as 0, a result may be the one of 0 in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from kernels.expression import DOUBLE, FLOAT, Draft, Expression
from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.expression import evaluate as emit
from kernels.native.emit.expression import memory_type, value_types
from kernels.native.emit.types import I64, PTR
from kernels.native.errors import EmitError
from kernels.native.run.runtime import denormals_as_zero
from kernels.native.target.isa import Isa
from kernels.registry import Op, evaluate, operators
from kernels.spec import BOOL, Array, DType
from tests.kernels.native.conftest import Native

ORDINARY = [0.0, 2.0**-100, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 7, 20, 88, 89, 104, 1e4, 2.0**23 + 1, 2.0**31, 2.0**63, 1e30, np.inf]
TOLERANCE_EPS = 16


def special(dtype: DType) -> Array:
    """Numbers of both signs at which functions change, and the least and largest of a type."""
    about = np.finfo(dtype)
    denormal = [about.smallest_subnormal, about.smallest_normal / 100, about.smallest_normal - about.smallest_subnormal]
    positive = np.array([*ORDINARY, *denormal, about.smallest_normal, about.max], dtype)
    return np.concatenate([positive, -positive, np.array([np.nan], dtype)])


def forms() -> list[Any]:
    """(op, attributes, expression) of one input or two of a shape, float32 or float64, for all attributes of an op's cases."""
    return [form for dtype in (FLOAT, DOUBLE) for form in _forms_of(dtype)]


def _forms_of(dtype: DType) -> list[Any]:
    found = []
    for op in operators().values():
        seen = set()
        for case in op.cases if op.expression is not None else ():
            attrs, count = op.bind(case.attrs), len(case.inputs)
            if case.raises is not None or count > 2 or (count > 1 and op.name == "Clip") or (count, repr(attrs)) in seen:
                continue
            seen.add((count, repr(attrs)))
            if (expression := expressed(op, count, attrs, dtype)) is not None:
                found.append(pytest.param(op, attrs, expression, id=f"{op.name}-{case.id}-{dtype.name}"))
    return found


def expressed(op: Op, count: int, attrs: Mapping[str, Any], dtype: DType) -> Expression | None:
    """The op's expression of so many numbers of a type, or None where it has none that native code computes."""
    assert op.expression is not None
    draft = Draft()
    names = tuple(f"x{n}" for n in range(count))
    made = op.expression(draft, *(draft.operand(name, dtype) for name in names), **attrs)
    try:
        expression = None if made is None else draft.finish(made, names)[1]
        return expression if expression is not None and value_types(expression)[-1] in (dtype, BOOL) else None
    except EmitError:
        return None


def computed(expression: Expression, isa: Isa, xs: Sequence[Array]) -> tuple[Array, Array]:
    """The results with denormals, and those with denormals as 0."""
    module, count, kind = Module(isa), len(xs[0]), memory_type(xs[0].dtype).by(isa.lanes)
    signature = {**{f"x{n}": PTR for n in range(len(xs))}, "y": PTR, "z": PTR, "n": I64}

    def loop(k: Function, sources: Sequence[Value], target: Value, count: Value) -> None:
        with k.loop("i", 0, count, isa.lanes) as i:
            loads = [lambda source=source: k.load(kind, source, i) for source in sources]
            made = emit(k, expression, loads, isa.lanes)
            k.store(made if made.type == kind else k.convert("uitofp", made, kind), target, i)

    with module.function("f", signature) as (k, *sources, y, z, n):
        loop(k, sources, y, n)
        with denormals_as_zero(k):
            loop(k, sources, z, n)
    padded = [np.resize(x, -(-count // isa.lanes) * isa.lanes) for x in xs]
    results = [np.full_like(padded[0], np.nan) for _ in range(2)]
    Native(module.text, isa)(*padded, *results, len(padded[0]))
    return results[0][:count], results[1][:count]


def exact(op: Op, xs: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    """The op's results at float64."""
    (made,) = evaluate(op, [x.astype(np.float64) for x in xs], attrs)
    return made.astype(np.float64)


def agrees(got: Array, wanted: Array, scale: Array) -> Array:
    """Where results are the wanted ones, within what rounding at their type explains. scale: of the numbers computed with."""
    about = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = wanted.astype(got.dtype)
        error = np.abs(got.astype(np.float64) - wanted)
        tolerance = about.smallest_normal + TOLERANCE_EPS * about.eps * np.maximum(np.abs(wanted), scale)
        near = np.isfinite(got) & (error <= tolerance)
    return (got == rounded) | (np.isnan(got) & np.isnan(wanted)) | near


def size_of_argument(expression: Expression, xs: Sequence[Array]) -> Array:
    """Return the magnitude of what a function of one number, or of a sum, is computed of; 0 where errors are relative."""
    if len(xs) == 1:
        argument = xs[0]
    elif len(expression.steps) == 2 and expression.steps[0].op == "add":
        with np.errstate(all="ignore"):
            argument = xs[0] + xs[1]
    else:
        return np.zeros(len(xs[0]))
    return np.where(np.isfinite(argument), np.abs(argument), 0)


@pytest.mark.parametrize(("op", "attrs", "expression"), forms())
def test_special_values(isa, op, attrs, expression):
    dtype, count = expression.operands[0], len(expression.operands)
    xs = [x.ravel() for x in np.meshgrid(*[special(dtype)] * count)]
    with_denormals, without = computed(expression, isa, xs)
    least = np.finfo(dtype).smallest_normal
    flushed = [np.where(np.abs(x) < least, np.copysign(dtype.type(0), x), x) for x in xs]
    scale = size_of_argument(expression, xs)
    (in_its_type,) = evaluate(op, xs, attrs)
    right = agrees(with_denormals, exact(op, xs, attrs), scale)
    right_without = agrees(without, exact(op, xs, attrs), scale) | agrees(without, exact(op, flushed, attrs), scale)
    for fine, got in ((right, with_denormals), (right_without, without)):
        same = (got == in_its_type) | (np.isnan(got) & np.isnan(in_its_type))
        overflows = ~np.isfinite(got) & same  # as the sum does of a mean that is finite
        wrong = [(*(float(x[n]) for x in xs), float(got[n])) for n in np.flatnonzero(~(fine | overflows))[:5]]
        assert not wrong


def test_sign_of_a_denormal_is_1_or_minus_1_also_where_denormals_count_as_zero(isa):
    expression, x = expressed(operators()["Sign"], 1, {}, FLOAT), special(FLOAT)
    assert expression is not None
    for found in computed(expression, isa, [x]):
        np.testing.assert_array_equal(found, np.sign(x))
