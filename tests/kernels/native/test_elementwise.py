import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.expression import Apply
from kernels.native.code.compile import assembly
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from tests.kernels.native.reference import CALL, assert_close, run_kernel
from tests.machines import MACHINES

POISON = 0xA5  # of every byte that is not to be written
RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def over(view: View, memory: np.ndarray) -> np.ndarray:
    """Return the numpy view of flat memory that a View describes."""
    strides = [stride * memory.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, strides)


def reach(view: View) -> int:
    """Return how many elements of memory a view needs, up to its last one. Strides may have any sign."""
    return view.offset + sum(max(0, (size - 1) * stride) for size, stride in zip(view.shape, view.strides, strict=True)) + 1


def dense(*shape, dtype=np.float32) -> Strided:
    return Strided(View.dense(shape), np.dtype(dtype))


def values(rng, size, dtype) -> np.ndarray:
    if dtype == np.float32:
        return rng.uniform(0.5, 2, size).astype(np.float32)
    return rng.integers(*((0, 2) if np.dtype(dtype).kind == "b" else (-100, 100)), size).astype(dtype)


def run_map(what: Map, isa, *memories) -> np.ndarray:
    """Run a map, assert that it wrote nothing outside of y's view, and return what it wrote."""
    bits = np.dtype(f"u{what.y.dtype.itemsize}")
    memory = np.full((reach(what.y.view) + 64) * bits.itemsize, POISON, np.uint8).view(bits)
    poison = memory[0]
    run_kernel(emit_map(what, isa), isa, y=memory, **{f"x{n}": memory for n, memory in enumerate(memories)})
    found = over(what.y.view, memory).copy().view(what.y.dtype)
    over(what.y.view, memory)[...] = poison
    assert (memory == poison).all()
    return found


def random_memories(what: Map, seed=0) -> list[np.ndarray]:
    """Return random memory of exactly the needed size for each operand."""
    rng = np.random.default_rng(seed)
    return [values(rng, reach(operand.view), operand.dtype) for operand in what.operands]


def check_copy(y: View, x: View, dtype, isa, seed=0) -> None:
    what = Map(Strided(y, np.dtype(dtype)), (Strided(x, np.dtype(dtype)),))
    (memory,) = random_memories(what, seed)
    np.testing.assert_array_equal(run_map(what, isa, memory), np.broadcast_to(over(x, memory), y.shape))


@st.composite
def strided(draw, shape, repeats=False):
    """Draw a view of that shape: axes in any order, with gaps, some of them backwards. repeats: some may have stride 0."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), draw(st.sampled_from([1, 1, 1, 2, 3]))
    offset = draw(st.integers(0, 3))
    for axis in order:
        if repeats and draw(st.integers(0, 3)) == 0:
            continue
        strides[axis] = step
        if draw(st.integers(0, 4)) == 0:
            strides[axis], offset = -step, offset + (shape[axis] - 1) * step
        step *= shape[axis]
        step += draw(st.sampled_from([0, 0, 1, 5]))
    return View(tuple(shape), tuple(strides), offset)


SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 16, 17, 33]), min_size=0, max_size=4).filter(lambda s: np.prod(s) <= 20_000)


@RELAXED
@given(data=st.data())
def test_any_expression_over_any_views(isa, data):
    shape = data.draw(SHAPES)
    y = data.draw(strided(shape))
    operands = [data.draw(strided(shape, repeats=True)) for _ in range(3)]
    steps = (Apply("mul", (0, 1)), Apply("relu", (1,)), Apply("sub", (3, 2)), Apply("add", (5, 4)))
    what = Map(Strided(y), tuple(Strided(view) for view in operands), steps)
    memories = random_memories(what)
    a, b, c = (over(view, memory).astype(np.float64) for view, memory in zip(operands, memories, strict=True))
    assert_close(run_map(what, isa, *memories), a * b - c + b, 3)


@RELAXED
@given(data=st.data())
def test_any_copy_of_any_element_size(isa, data):
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from([np.int8, np.int16, np.float32, np.int64, bool, np.float64]))
    check_copy(data.draw(strided(shape)), data.draw(strided(shape, repeats=True)), dtype, isa)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "max", "min"])
def test_flat_tails(isa, op):
    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}[op]
    for n in (1, isa.lanes - 1, isa.lanes, 4 * isa.lanes, 4 * isa.lanes + 3, 9 * isa.lanes + 1, 60_001):
        what = Map(dense(n), (dense(n), dense(n)), (Apply(op, (0, 1)),))
        a, b = random_memories(what)
        assert_close(run_map(what, isa, a, b), exact(a.astype(np.float64), b), 1)


def test_large_maps_are_cut_into_chunks_that_cover_all(isa):
    for shape, axes in (
        ((3, 130, 515), (0, 1, 2)),
        ((515, 390), (1, 0)),
        ((2, 40, 2500), (0, 2, 1)),
        ((2, 5, 70, 300), (3, 0, 1, 2)),
    ):
        x = View.dense(shape).transposed(axes)
        what = Map(Strided(View.dense(x.shape)), (Strided(x),))
        assert all(emit_map(what, machine).chunks > 1 for machine in MACHINES)
        check_copy(View.dense(x.shape), x, np.float32, isa)


def test_operands_repeat_by_numpys_rule(isa):
    shapes = [(2, 5, 3, 7), (5, 1, 1), (7,), ()]
    steps = (Apply("mul", (0, 1)), Apply("add", (4, 2)), Apply("div", (5, 3)))
    what = Map(dense(*shapes[0]), tuple(dense(*shape) for shape in shapes), steps)
    memories = random_memories(what)
    x, scale, shift, divisor = (m.astype(np.float64).reshape(s) for m, s in zip(memories, shapes, strict=True))
    assert_close(run_map(what, isa, *memories), (x * scale + shift) / divisor, 4)


def test_steps_on_what_repeats_are_done_once_a_row_and_right(isa):
    what = Map(dense(6, 40), (dense(6, 40), dense(6, 1)), (Apply("exp", (1,)), Apply("constant", (), (0.5,)),
               Apply("mul", (2, 3)), Apply("add", (0, 4))))  # fmt: skip
    x, row = random_memories(what)
    exact = x.reshape(6, 40).astype(np.float64) + 0.5 * np.exp(row.reshape(6, 1).astype(np.float64))
    assert_close(run_map(what, isa, x, row), exact, 3)


def test_constant_alone_fills(isa):
    inner = View.dense((9, 40)).sliced(1, 3, 21)
    assert (run_map(Map(Strided(inner), (), (Apply("constant", (), (1.5,)),)), isa) == 1.5).all()
    what = Map(Strided(inner, np.dtype(np.int64)), (), (Apply("constant", (), (-3,), np.dtype(np.int64)),))
    assert (run_map(what, isa) == -3).all()


def test_result_may_overwrite_an_operand(isa):
    x, b = np.linspace(-3, 3, 2000, dtype=np.float32).reshape(4, 5, 100), np.arange(5, dtype=np.float32)
    what = Map(dense(4, 5, 100), (dense(4, 5, 100), dense(5, 1)), (Apply("add", (0, 1)), Apply("relu", (2,))))
    y = x.copy()
    run_kernel(emit_map(what, isa), isa, x0=y, x1=b, y=y)
    assert_close(y, np.maximum(x.astype(np.float64) + b[:, None], 0), 1)


def test_blocks_of_channels_and_back(isa):
    lanes, (n, blocks, h, w) = isa.lanes, (2, 3, 5, 7)
    nchw = View.dense((n, blocks, lanes, h, w)).transposed((0, 1, 3, 4, 2))
    blocked = View.dense((n, blocks, h, w, lanes))
    check_copy(blocked, nchw, np.float32, isa)
    check_copy(nchw, blocked, np.float32, isa)


def test_transposed_operand_meets_straight_and_repeated_ones(isa):
    for rows, columns in ((16, 16), (37, 50), (3, 70), (70, 3)):
        turned = Strided(View.dense((columns, rows)).transposed((1, 0)))
        operands = (turned, dense(rows, columns), dense(rows, 1), dense(columns), turned)
        steps = (Apply("mul", (0, 1)), Apply("add", (5, 2)), Apply("sub", (6, 3)), Apply("add", (7, 4)))
        what = Map(dense(rows, columns), operands, steps)
        memories = random_memories(what)
        a, b, c, d, e = (over(o.view, m).astype(np.float64) for o, m in zip(operands, memories, strict=True))
        assert_close(run_map(what, isa, *memories), a * b + c[:, :1] - d + e, 4)


INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around(isa, dtype):
    x0, x1 = (values(np.random.default_rng(seed), 77, dtype) for seed in (1, 2))
    x0[:2] = np.iinfo(dtype).max, np.iinfo(dtype).min
    cases = {"add": x0 + x1, "sub": x0 - x1, "mul": x0 * x1, "max": np.maximum(x0, x1), "min": np.minimum(x0, x1),
             "and": x0 & x1, "or": x0 | x1, "xor": x0 ^ x1}  # fmt: skip
    for op, exact in cases.items():
        what = Map(dense(77, dtype=dtype), (dense(77, dtype=dtype),) * 2, (Apply(op, (0, 1)),))
        np.testing.assert_array_equal(run_map(what, isa, x0, x1), exact)
    with np.errstate(over="ignore"):
        unary = {"neg": np.negative(x0), "abs": np.abs(x0), "square": x0 * x0, "not": ~x0}
    for op, exact in unary.items():
        what = Map(dense(77, dtype=dtype), (dense(77, dtype=dtype),), (Apply(op, (0,)),))
        np.testing.assert_array_equal(run_map(what, isa, x0), exact)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_divide_and_shift_as_numpys(isa, dtype):
    """By 0 and by -1 too, and by more bits than there are."""
    limits, bits = np.iinfo(dtype), 8 * np.dtype(dtype).itemsize
    edges = np.array([limits.min, limits.max, 0, 1, 2, 3, 7, bits - 1, bits, 100], dtype)
    if limits.min < 0:
        edges = np.concatenate([edges, np.array([-1, -2, -7, limits.min + 1], dtype)])
    a, b = (grid.ravel() for grid in np.meshgrid(edges, edges))
    with np.errstate(all="ignore"):
        rest = np.fmod(a, b)
        cases = {"div": np.floor_divide(a - rest, b), "rem": rest, "mod": np.remainder(a, b), "shl": np.left_shift(a, b),
                 "shr": np.right_shift(a, b)}  # fmt: skip
    for op, exact in cases.items():
        what = Map(dense(a.size, dtype=dtype), (dense(a.size, dtype=dtype),) * 2, (Apply(op, (0, 1)),))
        np.testing.assert_array_equal(run_map(what, isa, a, b), exact, err_msg=op)
    what = Map(dense(a.size, dtype=dtype), (dense(a.size, dtype=dtype),), (Apply("sign", (0,)),))
    np.testing.assert_array_equal(run_map(what, isa, a), np.sign(a))


def test_doubles_compute(isa):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 4, (2, 77))
    a[:3], b[3] = (np.nan, np.inf, -2.5), -0.0
    double = dense(77, dtype=np.float64)
    with np.errstate(all="ignore"):
        two = {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b, "max": np.maximum(a, b), "min": np.minimum(a, b)}
        one = {"neg": -a, "abs": np.abs(a), "square": a * a, "sqrt": np.sqrt(a), "reciprocal": 1 / a, "floor": np.floor(a),
               "ceil": np.ceil(a), "round": np.rint(a), "relu": np.maximum(a, 0)}  # fmt: skip
    for op, exact in two.items():
        np.testing.assert_array_equal(run_map(Map(double, (double, double), (Apply(op, (0, 1)),)), isa, a, b), exact, err_msg=op)
    for op, exact in one.items():
        np.testing.assert_array_equal(run_map(Map(double, (double,), (Apply(op, (0,)),)), isa, a), exact, err_msg=op)
    clipped = run_map(Map(double, (double,), (Apply("clip", (0,), (1.0, 3.0)),)), isa, a)
    np.testing.assert_array_equal(clipped, np.clip(a, 1, 3))


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float32, np.float64])
def test_comparisons_make_bools(isa, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 3, 90).astype(dtype) for _ in range(2))
    a[0] = np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    if np.dtype(dtype).kind == "f":
        a[1] = b[1] = a[2] = np.nan
    exact = {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}
    for op, expected in exact.items():
        what = Map(dense(90, dtype=bool), (dense(90, dtype=dtype),) * 2, (Apply(op, (0, 1)),))
        np.testing.assert_array_equal(run_map(what, isa, a, b), expected)


def test_logic_of_bools(isa):
    a, b = np.random.default_rng(0).integers(0, 2, (2, 150)).astype(bool)
    cases = {"and": a & b, "or": a | b, "xor": a ^ b, "eq": a == b, "ne": a != b}
    for op, exact in cases.items():
        what = Map(dense(150, dtype=bool), (dense(150, dtype=bool),) * 2, (Apply(op, (0, 1)),))
        np.testing.assert_array_equal(run_map(what, isa, a, b), exact)
    np.testing.assert_array_equal(
        run_map(Map(dense(150, dtype=bool), (dense(150, dtype=bool),), (Apply("not", (0,)),)), isa, a), ~a
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool, np.float16, ml_dtypes.bfloat16, np.float64])
def test_where_selects_elements_of_any_type(isa, dtype):
    rng = np.random.default_rng(0)
    condition, a, b = values(rng, 53, bool), *(values(rng, 4 * 53, dtype).reshape(4, 53) for _ in range(2))
    operands = (dense(53, dtype=bool), dense(4, 53, dtype=dtype), dense(4, 53, dtype=dtype))
    found = run_map(Map(dense(4, 53, dtype=dtype), operands, (Apply("where", (0, 1, 2)),)), isa, condition, a, b)
    np.testing.assert_array_equal(found, np.where(condition, a, b))


def test_attention_mask_in_one_expression(isa):
    mask = np.array([1, 1, 1, 0, 0], np.int64)
    float32 = np.dtype(np.float32)
    steps = (Apply("cast", (0,), dtype=float32), Apply("constant", (), (1.0,)), Apply("sub", (2, 1)),
             Apply("constant", (), (-1e4,)), Apply("mul", (3, 4)))  # fmt: skip
    found = run_map(Map(dense(2, 5), (dense(5, dtype=np.int64),), steps), isa, mask)
    np.testing.assert_array_equal(found, np.broadcast_to((1 - mask) * np.float32(-1e4), (2, 5)))


CASTS = [np.float32, np.float64, np.int32, np.int64, np.uint8, np.int8, np.uint16, np.uint32, np.uint64, bool]


@pytest.mark.parametrize("new", CASTS)
@pytest.mark.parametrize("old", CASTS)
def test_cast_of_values_that_fit(isa, old, new):
    x = np.array([0, 1, 2, 3, 100, 7, 0, 1] * 5 + [9, 127], old)
    if np.dtype(old).kind == "f":
        x = (x + 0.75).astype(old)
    elif np.dtype(old).kind == "i" and np.dtype(new).kind in "if":
        x[::3] *= -1
    found = run_map(Map(dense(42, dtype=new), (dense(42, dtype=old),), (Apply("cast", (0,), dtype=np.dtype(new)),)), isa, x)
    np.testing.assert_array_equal(found, x.astype(new))


def test_cast_of_floats_that_do_not_fit(isa):
    x = np.array([1e10, -1e10, np.nan, np.inf, -np.inf, 300, -1.5, 2.9], np.float32)
    expected = {np.int32: [2**31 - 1, -(2**31), 0, 2**31 - 1, -(2**31), 300, -1, 2], np.uint8: [255, 0, 0, 255, 0, 255, 0, 2],
                np.int64: [10**10, -(10**10), 0, 2**63 - 1, -(2**63), 300, -1, 2], bool: [1] * 8}  # fmt: skip
    for dtype, exact in expected.items():
        what = Map(dense(8, dtype=dtype), (dense(8),), (Apply("cast", (0,), dtype=np.dtype(dtype)),))
        np.testing.assert_array_equal(run_map(what, isa, x), np.array(exact, dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_what_is_a_number_fits_as_a_cast_has_it(isa, dtype):
    x = np.array([-1e30, -70000, -300.5, -128.5, -1.5, -0.0, 0.49, 2.5, 127.5, 254.9, 66000, np.inf, -np.inf], np.float32)
    fitted, cast = (
        run_map(Map(dense(len(x), dtype=dtype), (dense(len(x)),), (Apply(op, (0,), dtype=np.dtype(dtype)),)), isa, x)
        for op in ("fit", "cast")
    )
    np.testing.assert_array_equal(fitted, cast)


def test_integers_that_lose_high_bits(isa):
    x = np.array([0x1_0000_0001, -1, 300, -300, 2**62 + 5], np.int64)
    for dtype in (np.int32, np.uint8, np.int8, np.uint32):
        what = Map(dense(5, dtype=dtype), (dense(5, dtype=np.int64),), (Apply("cast", (0,), dtype=np.dtype(dtype)),))
        np.testing.assert_array_equal(run_map(what, isa, x), x.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predicates_of_floats(isa, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0, 1.5, -np.nan], dtype)
    for op, exact in (("isnan", np.isnan(x)), ("isinf", np.isinf(x))):
        what = Map(dense(6, dtype=bool), (dense(6, dtype=dtype),), (Apply(op, (0,)),))
        np.testing.assert_array_equal(run_map(what, isa, x), exact)


def test_without_elements_there_is_no_chunk(isa):
    kernel = emit_map(Map(dense(3, 0), (dense(3, 1),)), isa)
    assert kernel.chunks == 0
    run_kernel(kernel, isa)


AVX2 = ISAS["avx2"]


def test_unknown_operations_and_wrong_types_are_refused():
    with pytest.raises(EmitError, match=r"there is no sinh of \(float32\)"):
        emit_map(Map(dense(8), (dense(8),), (Apply("sinh", (0,)),)), AVX2)
    with pytest.raises(EmitError, match=r"there is no add of \(float32, int32\)"):
        emit_map(Map(dense(8), (dense(8), dense(8, dtype=np.int32)), (Apply("add", (0, 1)),)), AVX2)
    with pytest.raises(EmitError, match=r"takes the values \(2,\), there are 1 before it"):
        emit_map(Map(dense(8), (dense(8),), (Apply("relu", (2,)),)), AVX2)
    with pytest.raises(EmitError, match="1 operands and 1 steps make bool, y is float32"):
        emit_map(Map(dense(8), (dense(8),), (Apply("isnan", (0,)),)), AVX2)
    with pytest.raises(EmitError, match="elements of complex128 have 16 bytes"):
        emit_map(Map(dense(8, dtype=np.complex128), (dense(8, dtype=np.complex128),)), AVX2)


def test_outputs_whose_elements_overlap_are_refused():
    for strides in ((0, 1), (4, 1), (2, 2)):
        with pytest.raises(EmitError, match="elements overlap"):
            emit_map(Map(Strided(View((3, 5), strides)), (dense(3, 5),)), AVX2)


def test_operands_of_other_shapes_are_refused():
    for shape in ((4,), (2, 3, 5), (3, 2)):
        with pytest.raises(EmitError, match="operand 0 has shape"):
            emit_map(Map(dense(3, 5), (dense(*shape),)), AVX2)


def test_power_and_sine_in_an_expression(isa):
    steps = (Apply("pow", (0, 1)), Apply("sin", (2,)), Apply("pow", (3,), (2.0,)))
    what = Map(dense(5, 37), (dense(5, 37), dense(37)), steps)
    x, y = random_memories(what)
    exact = np.sin(x.reshape(5, 37).astype(np.float64) ** y.astype(np.float64)) ** 2
    assert_close(run_map(what, isa, x, y), exact, 8)


@pytest.mark.parametrize("name", sorted(ISAS))
def test_casts_and_transposes_call_nothing_on_any_isa(name):
    isa = ISAS[name]
    maps = [
        Map(dense(9, dtype=new), (dense(9, dtype=old),), (Apply("cast", (0,), dtype=np.dtype(new)),))
        for old in CASTS
        for new in CASTS
    ]
    maps += [
        Map(dense(20, 21, dtype=dtype), (Strided(View.dense((21, 20)).transposed((1, 0)), np.dtype(dtype)),)) for dtype in CASTS
    ]
    for what in maps:
        assert not CALL.search(assembly(emit_map(what, isa).ir, isa)), what
