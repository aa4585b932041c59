"""What the generic suites share: the cases of all operators with their arrays, and the comparison of results."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kernels.containers import contained, held_by, is_container, is_sequence, items, optional_of, sequence_of
from kernels.registry import Case, Kernel, Op, operators
from kernels.spec import FLOATS, STRING, Array, Spec

_F64 = np.dtype(np.float64)


def every(_: Op) -> bool:
    """Accept every operator."""
    return True


def deterministic(op: Op) -> bool:
    """Accept operators that compute the same from the same inputs."""
    return op.deterministic


def valid_cases(of: Callable[[Op], bool] = every) -> list[Any]:
    """Return (op, case) of every case that must run, as pytest parameters. of: accepts the operators to take."""
    return [_parameter(op, case) for op in operators().values() if of(op) for case in op.cases if case.raises is None]


def refused_cases() -> list[Any]:
    """Return (op, case) of every case that must be refused, as pytest parameters."""
    return [_parameter(op, case) for op in operators().values() for case in op.cases if case.raises is not None]


def kernel_cases(of: Callable[[Op], bool] = every) -> list[Any]:
    """Return (op, case, kernel) of every case that must run and every kernel that takes it. of: accepts the operators to take."""
    found = []
    for op in filter(of, operators().values()):
        for case in op.cases:
            if case.raises is None:
                specs = [None if array is None else Spec.of(array) for array in arrays(op, case)]
                found += [
                    pytest.param(op, case, kernel, id=f"{op.name}-{case.id}-{kernel.algorithm}")
                    for kernel in op.kernels
                    if kernel.refuses is None or kernel.refuses(*specs, **op.bind(case.attrs)) is None
                ]
    return found


def for_each_op(parameters: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[[str], None]]:
    """Make one test for each operator from a check of one case. pytest then collects hundreds of tests instead of thousands.

    Args:    parameters: as `valid_cases` and `kernel_cases` return them; their first value is the operator.
    Returns: a decorator. The test checks every parameter of an operator, even after one failed, and raises all failures together,
             each with the id of its case. The test is skipped if every case is.
    """
    by_op: dict[str, list[Any]] = {}
    for parameter in parameters:
        by_op.setdefault(parameter.values[0].name, []).append(parameter)

    def decorate(check: Callable[..., None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("op", by_op)
        def test(op: str) -> None:
            failures: list[BaseException] = []
            reasons: list[str] = []
            for parameter in by_op[op]:
                try:
                    check(*parameter.values)
                except pytest.skip.Exception as skipped:
                    reasons.append(str(skipped))
                except (Exception, pytest.fail.Exception) as failure:  # noqa: BLE001  reported below, with its case
                    failure.add_note(f"case {parameter.id}")
                    failures.append(failure)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(by_op[op])} cases of {op}", failures)
            if len(reasons) == len(by_op[op]):
                pytest.skip("; ".join(dict.fromkeys(reasons)))

        test.__name__, test.__qualname__ = check.__name__, check.__qualname__
        test.__doc__, test.__module__ = check.__doc__, check.__module__
        return test

    return decorate


def _parameter(op: Op, case: Case) -> Any:
    return pytest.param(op, case, id=f"{op.name}-{case.id}")


def arrays(op: Op, case: Case) -> tuple[Array | None, ...]:
    """Return the case's inputs, read-only. The names of op and case are the seed, so that the values never change."""
    rng = np.random.default_rng(zlib.crc32(f"{op.name}/{case.id}".encode()))
    made: list[Array | None] = []
    for given in case.inputs:
        if isinstance(given, tuple):
            values = rng.standard_normal(given) if case.domain is None else rng.uniform(*case.domain, given)
            made.append(np.asarray(values, np.float32))
        else:
            made.append(None if given is None else given.copy())
    for array in made:
        if array is not None:
            array.flags.writeable = False
    return tuple(made)


def specs_of(inputs: Sequence[Array | None]) -> tuple[Spec | None, ...]:
    """Return specs that know their values, as those of a run do."""
    return tuple(None if array is None else Spec.of(array) for array in inputs)


def outputs_for(op: Op, case: Case, inputs: Sequence[Array | None], poison: int) -> tuple[Array, ...]:
    """Return arrays of the inferred specs, every byte of which is `poison`. Strings get a text that no op returns."""
    made = []
    for spec in op.infer_specs(specs_of(inputs), op.bind(case.attrs)):
        array = np.empty(spec.shape, spec.dtype)
        if spec.dtype == STRING:
            array.fill(f"poison {poison}")
        elif not spec.dtype.hasobject:  # elements of a container are no items before they are written
            array.reshape(-1).view(np.uint8)[:] = poison & 1 if spec.dtype == bool else poison
        made.append(array)
    return tuple(made)


def run(op: Op, case: Case, kernel: Kernel, out: Sequence[Array | None], inputs: Sequence[Array | None]) -> None:
    """Run one kernel, with the workspace that it needs."""
    attrs = op.bind(case.attrs)
    extra = {}
    if kernel.workspace_bytes is not None:
        extra["workspace"] = np.empty(kernel.workspace_bytes(*specs_of(inputs), **attrs), np.uint8)
    with np.errstate(all="ignore"):
        kernel.run(tuple(out), *inputs, **attrs, **extra)


def in_float64(inputs: Sequence[Array | None]) -> tuple[Array | None, ...]:
    """Return the inputs with every float array converted to float64, those in sequences and optionals too."""
    return tuple(None if array is None else _in_float64(array) for array in inputs)


def _in_float64(array: Array) -> Array:
    if not is_container(array.dtype):
        return array.astype(np.float64) if array.dtype in FLOATS else array
    wide = sequence_of(_F64) if is_container(held_by(array.dtype)) or is_sequence(array.dtype) else _F64
    return contained(wide if is_sequence(array.dtype) else optional_of(wide), list(map(_in_float64, items(array))))


def strided_forms(array: Array | None) -> Iterator[Array | None]:
    """Yield copies of the array in other memory layouts: every second element of a larger array, then Fortran order."""
    if array is None or array.ndim == 0:
        yield array
        return
    wide = np.repeat(array, 2, axis=-1)
    yield wide[..., ::2]
    if array.ndim > 1:
        yield np.asfortranarray(array)


def assert_same(actual: Any, expected: Any, eps: float) -> None:
    """Assert that values as sessions return them agree: arrays in type and as `assert_close` says, lists item by item."""
    if expected is None or isinstance(expected, list):
        assert type(actual) is type(expected)
        for one, other in zip(actual or (), expected or (), strict=True):
            assert_same(one, other, eps)
        return
    assert actual.dtype == expected.dtype
    assert_close(actual, expected, eps)


def assert_close(actual: Array, expected: Array, eps: float) -> None:
    """Assert that floats differ by at most `eps` epsilons of their dtype × the largest expected value, and others not at all."""
    assert actual.shape == expected.shape
    if is_container(actual.dtype):
        for one, other in zip(items(actual), items(expected), strict=True):
            assert_close(one, other, eps)
        return
    if actual.dtype not in FLOATS:
        np.testing.assert_array_equal(actual, expected.astype(actual.dtype) if expected.dtype != actual.dtype else expected)
        return
    wide, wanted = actual.astype(np.float64), expected.astype(np.float64)
    limit = float(ml_dtypes.finfo(actual.dtype).max)
    wanted = np.where(np.abs(wanted) > limit, np.copysign(np.inf, wanted), wanted)
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
    tolerance = eps * float(ml_dtypes.finfo(actual.dtype).eps) * max(largest, float(ml_dtypes.finfo(actual.dtype).tiny))
    np.testing.assert_allclose(wide, wanted, rtol=0, atol=tolerance, equal_nan=True)
