"""Shape inference of every operator on sizes that are symbols: what it says for all sizes is what it says for each of them."""

import numpy as np
import pytest

from kernels.errors import DataDependentError, EdgewiseError
from kernels.registry import operators
from kernels.size import LEAST, GuardError, Scope
from kernels.spec import Spec

CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.id}")
    for op in operators().values()
    for case in op.cases
    if case.raises is None and any(isinstance(given, tuple) and max(given, default=0) >= LEAST for given in case.inputs)
]
DTYPE = np.dtype(np.float32)


def shapes_of(case, symbol):
    """The input specs of a case; `symbol` makes the size of an axis."""
    specs: list[Spec | None] = []
    for number, given in enumerate(case.inputs):
        if isinstance(given, tuple):
            specs.append(Spec(tuple(symbol(number, axis, size) for axis, size in enumerate(given)), DTYPE))
        else:
            specs.append(None if given is None else Spec.of(given))
    return specs


@pytest.mark.parametrize(("op", "case"), CASES)
def test_inference_on_symbols(op, case):
    check(op, case)


def check(op, case):
    """Compare inference on symbols with that on numbers. Returns how many other sizes it serves."""
    attrs = op.bind(case.attrs)
    plain = shapes_of(case, lambda _number, _axis, size: size)
    try:
        wanted = op.infer_specs(plain, attrs)
    except DataDependentError:
        return 0
    scope = Scope()
    hints: list[int] = []
    places: dict[tuple[int, int], int] = {}

    def symbol(number, axis, size):
        made = scope.symbol(f"x{number}_{axis}", size)
        if made != 0 and len(scope.hints) > len(hints):
            places[number, axis] = len(hints)
            hints.append(size)
        return made

    made = op.infer_specs(shapes_of(case, symbol), attrs)
    assert [spec.dtype for spec in made] == [spec.dtype for spec in wanted]
    evaluate = scope.compile([size for spec in made for size in spec.shape])
    assert evaluate(hints) == [size for spec in wanted for size in spec.shape]
    served = 0
    for change in (lambda n: n + 1, lambda n: 2 * n, lambda n: n + 16 * (n % 3)):
        values = [change(size) for size in hints]
        try:
            found = evaluate(values)
        except GuardError:
            continue
        served += 1
        other = shapes_of(case, lambda number, axis, size, values=values: values[places[number, axis]] if size >= LEAST else size)
        assert found == [size for spec in op.infer_specs(other, attrs) for size in spec.shape]
    return served


TIED = {  # their cases tie sizes together, or an attribute has one number for each element of an axis
    "com.microsoft.MatMulNBits", "DeformConv", "GRU", "LSTM", "MaxUnpool", "RNN", "Scatter", "ai.onnx.ml.CastMap",
    "ai.onnx.ml.DictVectorizer", "ai.onnx.ml.LinearClassifier", "ai.onnx.ml.SVMClassifier", "ai.onnx.ml.ZipMap",
}  # fmt: skip
DATA_DEPENDENT = {"AffineGrid"}


def test_operators_serve_other_sizes():
    served: dict[str, int] = {}
    for op, case in (param.values for param in CASES):
        served[op.name] = served.get(op.name, 0) + check(op, case)
    assert {name for name, count in served.items() if not count} == TIED | DATA_DEPENDENT


def test_an_error_is_an_error_for_symbols_too():
    for op in operators().values():
        for case in op.cases:
            if case.raises is None or not all(isinstance(given, tuple) for given in case.inputs):
                continue
            scope = Scope()
            try:
                attrs = op.bind(case.attrs)
            except EdgewiseError:
                continue
            specs = shapes_of(case, lambda number, axis, size, scope=scope: scope.symbol(f"x{number}_{axis}", size))
            with pytest.raises(case.raises):
                op.infer_specs(specs, attrs)
