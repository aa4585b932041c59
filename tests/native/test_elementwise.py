import numpy as np
import pytest

from kernels.native.elementwise import Binary, Chain, emit_chain
from kernels.native.errors import EmitError
from kernels.native.isa import ISAS
from kernels.native.math import Activation
from tests.native.reference import assert_close, run_kernel

EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("op", sorted(EXACT))
def test_flat_chain_with_tails(isa, op, swapped):
    for n in (1, isa.lanes - 1, isa.lanes, 2 * isa.lanes + 3, 4096, 4097, 9000):
        x, r = np.random.default_rng(n).uniform(0.5, 2, (2, n)).astype(np.float32)
        b, y = np.array([0.75], np.float32), np.full(n + 64, np.nan, np.float32)
        steps = (Binary(op, "r", swapped=swapped), Activation("relu"), Binary("sub", "b", "scalar"))
        run_kernel(emit_chain(Chain(steps, n), isa), isa, x=x, b=b, r=r, y=y)
        pair = [v.astype(np.float64) for v in ((r, x) if swapped else (x, r))]
        assert_close(y[:n], np.maximum(EXACT[op](*pair), 0) - 0.75, 3)
        assert np.isnan(y[n:]).all()


def test_channel_operand_repeats_in_every_image(isa):
    rng, lanes = np.random.default_rng(0), isa.lanes
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 7, lanes), (3, 1, lanes)))
    y = np.full(x.size + 64, np.nan, np.float32)
    run_kernel(emit_chain(Chain((Binary("mul", "w", "channel"),), 7 * lanes, 3, 2), isa), isa, x=x, w=w, y=y)
    assert_close(y[: x.size].reshape(x.shape), x.astype(np.float64) * w, 1)
    assert np.isnan(y[x.size :]).all()


def test_unknown_operation_is_refused():
    with pytest.raises(EmitError, match="operation 'pow' is unknown"):
        emit_chain(Chain((Binary("pow", "r"),), 8), ISAS["avx2"])
