"""Every kernel allocates at most what `scratch_bytes` says: of each case, of it made larger, and of shapes made against it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.errors import EdgewiseError, InvalidError
from kernels.registry import Case, Kernel, Op, evaluate, find
from kernels.scratch import FIXED_BYTES, fixed
from kernels.spec import STRING, Array, Spec
from tests.kernels.ops.cases import arrays, for_each_op, kernel_cases, outputs_for, run, specs_of

LARGE_BYTES = 3 << 19  # of the inputs and outputs of a case made larger: several times what FIXED_BYTES lets pass
LARGE_MACS = 2_000_000


def peak_bytes(op: Op, case: Case, kernel: Kernel) -> tuple[int, int]:
    """Run a kernel. Returns the most bytes that it held at once, and what it says that this is."""
    inputs = arrays(op, case)
    out = outputs_for(op, case, inputs, poison=0xFF)
    attrs, specs = op.bind(case.attrs), specs_of(inputs)
    allowed = kernel.temporary_bytes(tuple(Spec(array.shape, array.dtype) for array in out), specs, attrs)
    tracemalloc.start()
    try:
        run(op, case, kernel, out, inputs)
        return tracemalloc.get_traced_memory()[1], allowed
    finally:
        tracemalloc.stop()


def assert_within(op: Op, case: Case, kernel: Kernel) -> None:
    peak, allowed = peak_bytes(op, case, kernel)
    assert peak <= allowed, f"{op.name} {case.id} {kernel.algorithm}: allocated {peak} bytes, its scratch_bytes says {allowed}"


def larger(op: Op, case: Case) -> Case:
    """Return the largest of some larger forms of a case, up to LARGE_BYTES; the case itself where its shapes have to stay."""
    best, best_bytes = case, 0
    for form in _forms(case):
        try:
            nbytes = _size(op, form)
        except EdgewiseError:
            continue
        if best_bytes < nbytes <= LARGE_BYTES:
            best, best_bytes = form, nbytes
    return best


def _forms(case: Case) -> Iterator[Case]:
    for factor in (4, 16, 64):
        for axes in (slice(None), slice(0, 1), slice(-1, None), slice(2, None)):
            made = [_scaled(given, factor, axes) for given in case.inputs]
            yield replace(case, inputs=tuple(made), id=f"{case.id} x {factor} along {axes}")


def _scaled(given: tuple[int, ...] | Array | None, factor: int, axes: slice) -> tuple[int, ...] | Array | None:
    if isinstance(given, tuple):
        sizes = list(given)
        sizes[axes] = [size * factor if size > 1 else size for size in sizes[axes]]
        return tuple(sizes)
    if isinstance(given, np.ndarray) and given.size > 8 and axes.start == 0 and given.dtype != STRING:
        return np.concatenate([given] * factor * 16)
    return given


def _size(op: Op, case: Case) -> int:
    """Return the bytes of inputs and outputs; more than allowed where it takes too many multiplications."""
    specs = [
        Spec(given, np.dtype(np.float32)) if isinstance(given, tuple) else None if given is None else Spec.of(given)
        for given in case.inputs
    ]
    attrs = op.bind(case.attrs)
    made = op.infer_specs(specs, attrs)
    cost = op.count(specs, made, attrs)
    if cost is not None and cost.macs > LARGE_MACS:
        return LARGE_BYTES + 1
    return sum(spec.nbytes for spec in (*specs, *made) if spec is not None)


def slow_when_large(op: Op) -> bool:
    return op.name in ("NonMaxSuppression", "ConvTranspose")  # they have shapes of their own below


@for_each_op(kernel_cases())
def test_scratch_of_every_case(op: Op, case: Case, kernel: Kernel) -> None:
    assert_within(op, case, kernel)


@for_each_op(kernel_cases(lambda op: not slow_when_large(op)))
def test_scratch_of_every_case_made_larger(op: Op, case: Case, kernel: Kernel) -> None:
    form = larger(op, case)
    specs = specs_of(arrays(op, form))
    if kernel.refuses is None or kernel.refuses(*specs, **op.bind(form.attrs)) is None:
        assert_within(op, form, kernel)


def check(name: str, inputs: Sequence[Any], attrs: Mapping[str, Any] | None = None, most: int | None = None) -> None:
    """Run every kernel of an op on inputs made against it. most: what its peak has to stay below, if any."""
    op, case = find(name), Case("hostile", inputs=tuple(inputs), attrs=attrs or {})
    specs = specs_of(arrays(op, case))
    for kernel in op.kernels:
        if kernel.refuses is None or kernel.refuses(*specs, **op.bind(case.attrs)) is None:
            assert_within(op, case, kernel)
            if most is not None:
                assert peak_bytes(op, case, kernel)[0] <= most


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


PIXELS, TAPS = np.zeros((1, 2, 100, 100), np.uint8), np.zeros((2, 2, 5, 5), np.uint8)
BYTES, ONE, ZERO = np.zeros((600, 600), np.int8), np.array(1, np.float32), np.array(0, np.uint8)
ROI = np.array([[0, 0, 9, 9]], np.float32)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((1, 1, 4096, 1), {"output_height": 4096, "output_width": 1, "sampling_ratio": 1}),
        ((1, 1, 1, 4096), {"output_height": 4096, "output_width": 1, "sampling_ratio": 1}),
        ((1, 1, 4096, 1), {"output_height": 1, "output_width": 4096, "sampling_ratio": 1}),
        ((1, 1, 4, 4), {"output_height": 2, "output_width": 1, "sampling_ratio": 1024}),
        ((1, 64, 8, 8), {"output_height": 1, "output_width": 1, "sampling_ratio": 256}),
    ],
    ids=["bins_by_size", "bins_by_width", "columns", "points", "channels"],
)
def test_regions_are_computed_in_blocks(mode: str, shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    # 4096 bins by 4096 pixels as weights, or 1024² points: 16 MiB and more where they are all computed at once
    check("RoiAlign", (shape, ROI, ints(0)), {"mode": mode, **attrs}, most=8 << 20)


def test_a_mean_counts_taps_without_listing_them() -> None:
    wide = {"kernel_shape": (8000,), "pads": (4000, 4000)}
    check("AveragePool", ((1, 1, 8000),), wide, most=1 << 20)  # 8000² places and taps are 488 MiB


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_of_many_taps(name: str) -> None:
    check(name, ((1, 1, 2000),), {"kernel_shape": (1500,), "pads": (700, 700)})


@pytest.mark.parametrize("kind", [np.int8, np.float16, np.int64])
def test_ranges_are_made_in_blocks(kind: Any) -> None:
    count = 100 if kind == np.int8 else 2000 if kind == np.float16 else 400_000
    check("Range", (np.array(0, kind), np.array(count, kind), np.array(1, kind)), most=FIXED_BYTES)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_is_written_in_blocks(axis: int) -> None:
    values = np.array([0, 1], np.int8)
    check("OneHot", (np.arange(4000).reshape(40, 100), np.array(1000), values), {"axis": axis}, most=FIXED_BYTES)
    check("OneHot", (ints(3)[0:1], np.array(4_000_000), values), {}, most=FIXED_BYTES)


def test_resize_counts_what_lies_between_its_passes() -> None:
    inputs = ((1, 1, 4, 16384), None, None, ints(1, 1, 256, 64))  # 4 · 16,384 → 256 · 16,384 → 256 · 64
    for mode in ("nearest", "linear", "cubic"):
        check("Resize", inputs, {"mode": mode})


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("a,b,c->c", ((3000,), (1000,), (1,))),
        ("ab,bc,cd->ad", ((2, 600), (600, 900), (900, 2))),
        ("a,b->ab", ((2000,), (1000,))),
        ("abc->a", ((100, 100, 100),)),
        ("ii->i", ((600, 600),)),
        ("ab,cb,ad->cd", ((1000, 1), (1000, 1), (1000, 1))),
    ],
)
def test_products_of_several_are_counted(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    check("Einsum", shapes, {"equation": equation})


@pytest.mark.parametrize("attrs", [{}, {"is_causal": 1}, {"softcap": 1.0}, {"softmax_precision": 11}], ids=str)
def test_scores_are_counted(attrs: dict[str, Any]) -> None:
    check("Attention", ((1, 1, 700, 2), (1, 1, 700, 2), (1, 1, 700, 2)), attrs)
    check("Attention", ((1, 1, 700, 2), (1, 1, 700, 2), (1, 1, 700, 2), np.ones((700, 700), bool)), attrs)
    half = np.ones((1, 2, 500, 2), np.float16)
    check("Attention", (half, half, half), attrs)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_grids_of_images_of_one_channel(mode: str, padding_mode: str) -> None:
    attrs = {"mode": mode, "padding_mode": padding_mode}
    check("GridSample", ((1, 1, 2, 2), (1, 200, 200, 2)), attrs)
    check("GridSample", ((1, 1, 2, 2, 2), (1, 20, 40, 40, 3)), attrs)
    check("GridSample", ((1, 30, 2, 2), (1, 50, 50, 2)), attrs)


def test_boxes_are_compared_one_with_all() -> None:
    boxes = np.arange(4 * 20_000, dtype=np.float32).reshape(1, 20_000, 4)
    check("NonMaxSuppression", (boxes, np.ones((1, 1, 20_000), np.float32), ints(3), floats(0.5)))
    check("NonMaxSuppression", (boxes, np.ones((1, 1, 20_000), np.float32), ints(3), floats(0.5)), {"center_point_box": 1})


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_gates_are_counted(op: str) -> None:
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 64
    check(op, ((300, 20, 1), (1, gates * hidden, 1), (1, gates * hidden, hidden)))
    check(op, ((3, 2000, 1), (1, gates * hidden, 1), (1, gates * hidden, hidden), None, np.full(2000, 2, np.int32)))
    check(
        op,
        ((300, 20, 1), (2, gates * hidden, 1), (2, gates * hidden, hidden)),
        {"direction": "bidirectional", "hidden_size": hidden},
    )


@pytest.mark.parametrize(
    ("name", "inputs", "attrs"),
    [
        ("MaxPool", (np.zeros((1, 1, 600, 600), np.int8),), {"kernel_shape": (2, 2), "storage_order": 1}),
        ("MaxPool", (np.zeros((1, 1, 600, 600), np.int8),), {"kernel_shape": (2, 2)}),
        ("TopK", (BYTES, ints(1)), {}),
        ("ArgMax", (BYTES,), {"select_last_index": 1}),
        ("ReverseSequence", (BYTES, np.full(600, 9)), {}),
        ("GatherElements", (BYTES, np.zeros((600, 600), np.int32)), {}),
        ("ScatterElements", (BYTES, np.zeros((500, 500), np.int32), np.ones((500, 500), np.int8)), {}),
        ("GatherND", (BYTES, np.zeros((600, 600, 1), np.int64)), {}),
        ("Pad", (np.zeros(1000, np.int8), ints(500_000, 500_000)), {"mode": "wrap"}),
        ("Pad", (np.zeros((1000, 1), np.int8), ints(500_000, 0, 500_000, 1)), {"mode": "reflect"}),
        ("QLinearConv", (PIXELS, ONE, ZERO, TAPS, ONE, ZERO, ONE, ZERO), {}),
        ("ConvInteger", (PIXELS, TAPS), {}),
        ("MatMulInteger", (np.zeros((600, 600), np.uint8), np.zeros((600, 600), np.uint8)), {}),
        ("NonZero", (np.ones((100, 10, 10, 100), bool),), {}),
        ("CumSum", (np.zeros((600, 600), np.float16), np.array(0)), {"reverse": 1, "exclusive": 1}),
        ("DeformConv", ((1, 1, 60, 60), (1, 1, 5, 5), (1, 50, 56, 56)), {}),
        ("Trilu", (BYTES,), {}),
        ("MelWeightMatrix", (np.array(1000), np.array(2000), np.array(16000), np.array(0.0), np.array(8000.0)), {}),
        ("Col2Im", ((1, 9, 40_000), ints(202, 202), ints(3, 3)), {}),
        ("Cast", (np.zeros(400_000, np.int8),), {"to": 1}),
        ("Cast", (np.zeros(400_000, np.float16),), {"to": 17}),
        ("QuantizeLinear", (np.zeros(400_000, np.float16), np.array(1, np.float16)), {}),
        ("DequantizeLinear", (np.zeros(400_000, np.int8), np.array(1, np.float16)), {}),
        ("RandomNormal", (), {"shape": (600, 600), "dtype": 10}),
        ("Bernoulli", (np.zeros(400_000, np.float16),), {"dtype": 9}),
        ("ConvTranspose", ((1, 4, 40, 40), (4, 4, 9, 9)), {}),
        ("Unique", (np.zeros(400_000, np.int8),), {}),
        ("Compress", (np.zeros(400_000, np.int8), np.ones(400_000, bool)), {}),
        ("IsInf", (np.zeros(400_000, np.float16),), {}),
        ("Pow", (np.full(400_000, 2, np.int8), np.array(2.5, np.float32)), {}),
        ("Mod", (np.full(400_000, 2, np.int8), np.array(3, np.int8)), {}),
        ("Div", (np.full(400_000, 2, np.int8), np.array(3, np.int8)), {}),
        ("EyeLike", (BYTES,), {}),
        ("STFT", (np.zeros((1, 40_000, 1), np.float32), np.array(8), None, np.array(256)), {}),
        ("MaxUnpool", ((1, 1, 300, 300), np.arange(90_000).reshape(1, 1, 300, 300)), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_small_types_and_other_shapes_made_against_kernels(name: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> None:
    check(name, [None if given is None else given if isinstance(given, tuple) else np.asarray(given) for given in inputs], attrs)


def test_one_long_text_does_not_widen_all_others() -> None:
    texts = np.array(["a", "b"] * 10_000, object)
    texts[7] = "x" * 10_000  # 20,000 texts of 10,000 characters: 800 MB
    check("Unique", (texts,), most=16 << 20)


def test_texts_that_double_at_every_step_end() -> None:
    texts = np.full(1 << 18, "x" * 600, object)
    with pytest.raises(InvalidError, match="314572800 characters together, the limit is 268435456"):
        evaluate(find("StringConcat"), (texts, texts), {})
    assert evaluate(find("StringConcat"), (texts[:1], np.array(["", "y"], object)), {})[0].tolist() == [
        "x" * 600,
        "x" * 600 + "y",
    ]


def test_what_is_fixed_is_small() -> None:
    assert fixed((Spec((1 << 40,), np.dtype(np.float32)),)) == FIXED_BYTES <= 1 << 20
