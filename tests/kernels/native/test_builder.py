import numpy as np
import pytest

from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.types import BF16, F32, I1, I32, I64, PTR, literal
from kernels.native.errors import CompileError, EmitError
from kernels.native.target.isa import ISAS
from tests.kernels.native.conftest import Native


def emit(isa, body, **arguments):
    """Emit a function `f` and return its IR. arguments: name -> type."""
    module = Module(isa)
    with module.function("f", arguments) as (k, *values):
        body(k, *values)
    return module.text


def test_loop_scales_an_array_with_a_part_at_the_end(isa):
    lanes = isa.lanes
    for n in (1, lanes - 1, lanes, 2 * lanes + 3):

        def body(k, x, y, n=n):
            whole = n - n % lanes
            if whole:
                with k.loop("i", 0, whole, lanes) as i:
                    k.store(k.load(k.f32, x, i) * 2.0, y, i)
            if n % lanes:
                k.store_part(k.load_part(k.f32, x, n % lanes, whole) * 2.0, y, n % lanes, whole)

        x, y = np.arange(n, dtype=np.float32), np.full(n + 1, np.nan, np.float32)
        Native(emit(isa, body, x=PTR, y=PTR), isa)(x, y)
        np.testing.assert_array_equal(y[:n], 2 * x)
        assert np.isnan(y[n])  # nothing written behind the end


def test_load_part_fills_the_rest_with_zero_and_reads_nothing_behind(isa):
    for n in range(1, isa.lanes + 1):
        y = np.full(isa.lanes, np.nan, np.float32)
        x = np.arange(1, n + 1, dtype=np.float32)
        Native(emit(isa, lambda k, x, y, n=n: k.store(k.load_part(k.f32, x, n), y), x=PTR, y=PTR), isa)(x, y)
        np.testing.assert_array_equal(y, np.pad(x, (0, isa.lanes - n)))


@pytest.mark.parametrize("step", [1, 3])
def test_the_first_lanes_of_a_count_known_at_run_time_are_loaded_and_stored(isa, step):
    def body(k, x, y, count, stride):
        k.store_first(k.load_first(k.f32, x, count, stride), y, count, stride)

    native = Native(emit(isa, body, x=PTR, y=PTR, count=I64, stride=I64), isa)
    for count in range(isa.lanes + 1):
        x, y = (np.full(step * (isa.lanes + 1), np.nan, np.float32) for _ in range(2))
        x[: step * count : step] = np.arange(1, count + 1)
        native(x, y, count, step)
        np.testing.assert_array_equal(y, x)


def test_lanes_behind_the_first_ones_are_zero(isa):
    def body(k, x, y, count):
        k.store(k.load_first(k.f32, x, count), y)

    native = Native(emit(isa, body, x=PTR, y=PTR, count=I64), isa)
    for count in range(isa.lanes + 1):
        y = np.full(isa.lanes, np.nan, np.float32)
        native(np.arange(1, isa.lanes + 1, dtype=np.float32), y, count)
        np.testing.assert_array_equal(y, [lane + 1 if lane < count else 0 for lane in range(isa.lanes)])


def test_fold_with_known_and_unknown_bounds_carries_sums(isa):
    for known in (True, False):

        def body(k, x, y, n, known=known):
            with k.fold("i", 0, 7 if known else n, 1, [k.zero(F32), k.const(I64, 5)]) as fold:
                total, count = fold.values
                fold.values = [total + k.load(F32, x, fold.index), count + 1]
            k.store(fold.values[0], y)
            k.store(k.convert("sitofp", fold.values[1], F32), y, 1)

        x, y = np.arange(7, dtype=np.float32), np.zeros(2, np.float32)
        function = Native(emit(isa, body, x=PTR, y=PTR, n=I64), isa)
        function(x, y, 7)
        assert y.tolist() == [21, 12]
        if not known:
            function(x, y, 0)
            assert y.tolist() == [0, 5]


def test_fold_of_one_turn_makes_no_loop():
    def body(k, x):
        with k.fold("i", 3, 4, 1, [k.zero(F32)]) as fold:
            assert fold.index.known == 3
            fold.values = [k.load(F32, x, fold.index)]
        k.store(fold.values[0], x)

    assert "phi" not in emit(ISAS["avx2"], body, x=PTR)


def test_fold_that_never_runs_is_refused():
    with pytest.raises(EmitError, match=r"loop i: 4 to 4 by 1 never runs"):
        emit(ISAS["avx2"], lambda k: k.loop("i", 4, 4).__enter__())


def test_fold_that_changes_a_type_is_refused():
    def body(k):
        with k.fold("i", 0, 4, 1, [k.zero(F32)]) as fold:
            fold.values = [k.const(I64, 1)]

    with pytest.raises(EmitError, match="type is i64, need float"):
        emit(ISAS["avx2"], body)


def test_nested_loops_when_and_repeat_count_what_they_should(isa):
    def body(k, y, n):
        with k.loop("i", 0, n) as i, k.loop("j", 0, 3) as j, k.when(i * 3 + j >= 5):
            k.store(k.load(I64, y) + 1, y)
        with k.repeat("drain") as leave_if:
            taken = k.fetch_add(k.offset(y, 1, I64), 2)
            leave_if(taken >= 10)
            k.store(k.load(I64, y, 2) + taken, y, 2)

    y = np.zeros(3, np.int64)
    Native(emit(isa, body, y=PTR, n=I64), isa)(y, 4)
    assert y.tolist() == [7, 12, 0 + 2 + 4 + 6 + 8]


def test_integer_constants_fold():
    def body(k, n):
        assert (k.const(I64, 6) * 7 + 1).known == 43
        assert (n * 0).known == 0
        assert (n * 1) is n
        assert (n + 0) is n
        assert (0 + n) is n
        assert (n % 1).known == 0

    emit(ISAS["avx2"], body, n=I64)


def test_mixed_types_are_refused():
    with pytest.raises(EmitError, match="type is i64, need float"):
        emit(ISAS["avx2"], lambda k, n: k.const(F32, 1) + n, n=I64)


@pytest.mark.parametrize("clamp", ["at_least", "at_most", "maximum", "minimum"])
def test_clamps_and_extremes_propagate_nan(isa, clamp):
    x = np.array([np.nan, -np.inf, -1, -0.0, 0.5, 1, 2, np.inf] * 2, np.float32)[: isa.lanes]
    y = np.empty_like(x)
    Native(emit(isa, lambda k, x, y: k.store(getattr(k, clamp)(k.load(k.f32, x), 0.5), y), x=PTR, y=PTR), isa)(x, y)
    np.testing.assert_array_equal(y, (np.maximum if clamp in {"at_least", "maximum"} else np.minimum)(x, np.float32(0.5)))


def test_at_least_is_one_instruction():
    from kernels.native.code.compile import assembly

    def body(k, x):
        v = k.load(k.f32, x)
        k.store(k.at_least(v * v, 0.0), x)

    text = assembly(emit(ISAS["avx512"], body, x=PTR), ISAS["avx512"])
    assert "vmaxps" in text
    assert "vcmp" not in text


def test_reduce_adds_every_lane(isa):
    x, y = np.arange(isa.lanes, dtype=np.float32), np.empty(1, np.float32)
    Native(emit(isa, lambda k, x, y: k.store(k.reduce(k.load(k.f32, x), lambda a, b: a + b), y), x=PTR, y=PTR), isa)(x, y)
    assert y[0] == x.sum()


def test_fma_rounds_once_where_the_machine_has_it(isa):
    x = np.full(isa.lanes, 1 + 2.0**-12, np.float32)
    y = np.empty_like(x)

    def body(k, x, y):
        v = k.load(k.f32, x)
        k.store(k.fma(v, v, -1.0), y)

    Native(emit(isa, body, x=PTR, y=PTR), isa)(x, y)
    exact = np.float32(x[0].astype(np.float64) ** 2 - 1)
    assert (y == (exact if isa.fma else x * x - np.float32(1))).all()


def test_compare_and_select_treat_nan_as_unordered(isa):
    x = np.resize(np.array([np.nan, -1, 0, 2], np.float32), isa.lanes)
    for relation, expected in (("lt", [0, 1, 0, 0]), ("ge", [0, 0, 1, 1]), ("ne", [1, 1, 0, 1]), ("eq", [0, 0, 1, 0])):
        y = np.empty_like(x)

        def body(k, x, y, relation=relation):
            k.store(k.select(k.compare(relation, k.load(k.f32, x), 0.0), k.const(k.f32, 1), 0.0), y)

        Native(emit(isa, body, x=PTR, y=PTR), isa)(x, y)
        np.testing.assert_array_equal(y, np.resize(np.array(expected, np.float32), isa.lanes))


@pytest.mark.parametrize("value", [0.1, -0.0, 1e-45, float("inf"), float("-inf"), 3.4028234663852886e38])
def test_float_constants_are_bit_exact(isa, value):
    y = np.empty(isa.lanes, np.float32)
    Native(emit(isa, lambda k, y: k.store(k.const(k.f32, value), y), y=PTR), isa)(y)
    assert y.view(np.uint32)[-1] == np.float32(value).view(np.uint32)


def test_constants_that_the_type_cannot_hold_are_refused():
    for kind, value in ((I32, 0.5), (BF16, 0.1), (F32.by(4), [1.0, 2.0])):
        with pytest.raises(EmitError, match="constant"):
            literal(kind, value)
    assert literal(I1, 1) == "true"


def test_text_that_llvm_refuses_is_a_compile_error(isa):
    with pytest.raises(CompileError, match="LLVM refuses"):
        Native("define void @f() { ret i32 0 }", isa)


@pytest.mark.parametrize("name", sorted(ISAS))
def test_every_described_isa_generates_code(name):
    from kernels.native.code.compile import generate

    isa = ISAS[name]

    def body(k, x, n):
        with k.loop("i", 0, n, isa.lanes) as i:
            v = k.load(k.f32, x, i)
            k.store(k.fma(v, 2.0, v), x, i)
            k.store_part(k.load_part(k.f32, x, isa.lanes - 1, i), x, isa.lanes - 1, i)

    code = generate(emit(isa, body, x=PTR, n=I64), isa).code
    assert code.startswith(b"\x7fELF")
    assert int.from_bytes(code[18:20], "little") == {"x86_64": 62, "aarch64": 183}[isa.arch]


def test_minus_one_is_not_taken_for_an_operand_that_changes_nothing(isa):
    """Only 0 and 1 are neutral, each for some operations: -1 - x is not x, and neither is x ^ -1 or x | -1."""
    k = Function(Module(isa))
    x, minus_one = Value(k, I64, "%x"), k.const(I64, -1)
    made = [minus_one - x, x - minus_one, x ^ minus_one, x | minus_one, x // minus_one, minus_one * x, x + minus_one]
    assert all(value.ref != x.ref for value in made)
    assert [value.ref for value in (x + 0, x - 0, x * 1, 0 + x, 1 * x, x // 1)] == [x.ref] * 6
