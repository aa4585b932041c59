from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.cumulative import Cumulative, emit_cumulative
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.registry import find
from tests.kernels.native.reference import run_kernel, seen

FORMS = pytest.mark.parametrize("form", [(False, False), (True, False), (False, True), (True, True)], ids=str)


def check(isa, shape, kind="add", dtype=np.float32, form=(False, False), x_view=None, like=None, seed=0):
    """Compare a kernel with numpy's bit by bit. form: exclusive and reverse. like: run the code of that kernel."""
    exclusive, reverse = form
    dtype, view = np.dtype(dtype), x_view or View.dense(shape)
    rng = np.random.default_rng(seed)
    memory = rng.standard_normal(view.span).astype(dtype) if dtype.kind == "f" else rng.integers(-9, 9, view.span).astype(dtype)
    x = seen(view, memory)
    wanted = np.empty(shape, dtype)
    op = find("CumSum" if kind == "add" else "CumProd")
    op.kernels[0].run((wanted,), x, np.array(1), exclusive=int(exclusive), reverse=int(reverse))
    kernel = emit_cumulative(Cumulative(view, View.dense(shape), kind, dtype, exclusive, reverse), isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    out = np.full(wanted.nbytes + 64, 0xA5, np.uint8)
    run_kernel(kernel, isa, x=memory, y=out)
    assert out[: wanted.nbytes].tobytes() == wanted.tobytes()
    assert (out[wanted.nbytes :] == 0xA5).all()
    return kernel


@FORMS
@pytest.mark.parametrize("kind", ["add", "mul"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int32, np.uint64])
def test_totals_of_every_type_and_order(isa, dtype, kind, form):
    for shape in ((2, 7, 5), (9, 6, 1), (1, 1, 3), (2, 3, 150), (3, 1, 1), (2, 5, 0)):
        check(isa, shape, kind, dtype, form)


def test_many_totals_are_shared_by_chunks(isa):
    assert check(isa, (500, 300, 1)).chunks > 1
    assert check(isa, (2, 300, 700)).chunks > 1


def test_views_that_are_not_dense_are_read(isa):
    check(isa, (3, 4, 5), x_view=View((3, 4, 5), (100, 6, 1), 3))
    check(isa, (3, 4, 5), x_view=View((3, 4, 5), (1, 40, 7), 3), form=(True, True))


def test_zeros_keep_their_sign(isa):
    x, y = np.array([-0.0, -0.0, 1], np.float32), np.empty(3, np.float32)
    run_kernel(emit_cumulative(Cumulative(View.dense((1, 3, 1)), View.dense((1, 3, 1))), isa), isa, x=x, y=y)
    assert np.signbit(y).tolist() == [True, True, False]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_serves_others(isa, data):
    form, single, like = (data.draw(st.booleans()), data.draw(st.booleans())), data.draw(st.booleans()), None
    for _ in range(3):
        shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(1) if single else st.integers(2, 90)))
        made = check(isa, shape, form=form, like=like, seed=data.draw(st.integers(0, 2**32)))
        like = like or made


def test_shapes_that_do_not_fit_are_refused():
    isa = ISAS["avx2"]
    with pytest.raises(EmitError, match="need numbers"):
        emit_cumulative(Cumulative(View.dense((1, 3, 1)), View.dense((1, 3, 2))), isa)
    with pytest.raises(EmitError, match="need numbers"):
        emit_cumulative(Cumulative(View.dense((1, 3, 1)), View.dense((1, 3, 1)), "add", np.dtype(bool)), isa)
