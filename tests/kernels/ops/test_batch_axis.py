"""What ops declare about the rows of a batch agrees with computing each row by itself."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import pytest

from kernels.batch_axis import Application, Content, Operand, broadcast_keeps_rows
from kernels.errors import EdgewiseError
from kernels.registry import Case, Op, evaluate, operators
from kernels.spec import Array
from tests.kernels.ops.cases import arrays, assert_close, specs_of


def test_an_elementwise_op_needs_no_rule_of_its_own() -> None:
    for op in operators().values():
        if op.elementwise:
            assert op.mixes_rows is None, op.name
            assert op.row_rule is broadcast_keeps_rows, op.name
        else:
            assert op.row_rule is op.mixes_rows, op.name


@pytest.mark.parametrize("name", [name for name, op in operators().items() if op.mixes_rows is not None])
def test_rows_that_stay_apart_are_the_same_alone_and_together(name: str) -> None:
    op = operators()[name]
    cases = [case for case in op.cases if case.raises is None]
    apart = [
        _rows_are_apart(op, case, batched)
        for case in cases
        for batched in ({0}, {1}, set(range(len(case.inputs))))
        if max(batched) < len(case.inputs)
    ]
    assert any(apart), "no case of the op keeps rows apart"


def _rows_are_apart(op: Op, case: Case, batched: Set[int]) -> bool:
    """Assert that five rows in one run give the same as five runs. batched: positions of the inputs that hold rows.

    Return False if the op states that rows mix, or if it takes only the case's own number of rows.
    """
    inputs = arrays(op, case)
    if any(array is None or not array.ndim or not array.size for i, array in enumerate(inputs) if i in batched):
        return False
    together = [_five_rows(array) if array is not None and i in batched else array for i, array in enumerate(inputs)]
    attrs = op.bind(case.attrs)
    operands: list[Operand | None] = []
    for i, spec in enumerate(specs_of(together)):
        if spec is not None and i in batched:
            operands.append(Operand(f"input {i}", Content.ROWS, spec.with_value(None)))
        else:
            operands.append(None if spec is None else Operand(f"input {i}", Content.FREE, spec))
    assert op.mixes_rows is not None
    try:
        y = evaluate(op, together, attrs)[0]
        if op.mixes_rows(Application(tuple(operands), attrs, y.ndim, further_outputs=False)):
            return False
        rows = [
            evaluate(op, [a[row : row + 1] if a is not None and i in batched else a for i, a in enumerate(together)], attrs)[0]
            for row in range(5)
        ]
    except EdgewiseError:
        return False
    if y.shape[:1] != (5,) or any(row.shape != (1, *y.shape[1:]) for row in rows):
        return False  # axis 0 of the output is not the batch, which `graph.batching` refuses by itself
    assert_close(y, np.concatenate(rows), op.tolerance_eps)
    return True


def _five_rows(array: Array) -> Array:
    return np.concatenate([array, np.flip(array, tuple(range(1, array.ndim))), np.roll(array, 1, axis=-1), *[array] * 3])[:5]


def _application(op: str, *contents: Content, shapes: tuple[tuple[int, ...], ...], **attrs: object) -> Application:
    inputs = tuple(arrays(operators()[op], Case("", inputs=shapes)))
    operands = zip(contents, specs_of(inputs), strict=True)
    made = tuple(Operand(f"i{i}", content, spec) for i, (content, spec) in enumerate(operands))
    return Application(made, attrs, max(map(len, shapes)), further_outputs=False)


def test_a_reason_names_the_input_at_fault() -> None:
    call = _application("Add", Content.ROWS, Content.FREE, shapes=((4, 3), (4, 3)))
    assert broadcast_keeps_rows(call) == "'i1' differs from row to row"
    assert broadcast_keeps_rows(_application("Add", Content.ROWS, Content.SIZE, shapes=((4, 3), ()))) == (
        "'i1' depends on the batch's size"
    )
    assert broadcast_keeps_rows(_application("Add", Content.ROWS, Content.FREE, shapes=((4, 3), (3,)))) == ""


@pytest.mark.parametrize(
    ("scale", "attrs", "reason"),
    [
        (1.0, {}, ""),
        (1.05, {}, "it resizes the batch"),
        (1.05, {"axes": (-4, 1, 2, 3)}, "it resizes the batch"),
        (1.0, {"coordinate_transformation_mode": "tf_crop_and_resize"}, "it crops"),
        (1.0, {"keep_aspect_ratio_policy": "not_larger"}, "it keeps the aspect ratio of the batch"),
    ],
)
def test_a_resize_that_rounds_the_batch_to_its_size_mixes_rows(scale: float, attrs: dict[str, object], reason: str) -> None:
    op = operators()["Resize"]
    scales = np.array([scale, 1, 2, 2], np.float32)
    inputs = specs_of([np.zeros((4, 3, 5, 5), np.float32), None, scales])
    contents = (Content.ROWS, Content.FREE, Content.FREE)
    made = tuple(None if spec is None else Operand(f"i{n}", contents[n], spec) for n, spec in enumerate(inputs))
    assert op.mixes_rows is not None
    assert op.mixes_rows(Application(made, op.bind(attrs), 4, further_outputs=False)) == reason
