import numpy as np
import pytest

from kernels.native.emit.builder import Module
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import I8, I16, I32, I64, PTR


@pytest.mark.parametrize("kind", [I8, I16, I32, I64], ids=lambda kind: kind.text)
def test_square_tiles_are_transposed(isa, native, kind):
    for lanes in (2, 4, 8, 16):
        module = Module(isa)
        with module.function("f", {"x": PTR, "y": PTR}) as (k, x, y):
            rows = [k.load(kind.by(lanes), x, row * lanes) for row in range(lanes)]
            for row, value in enumerate(transpose(k, rows)):
                k.store(value, y, row * lanes)
        x = np.arange(lanes * lanes).astype(f"i{kind.bits // 8}").reshape(lanes, lanes)
        y = np.zeros_like(x)
        native(module.text, isa)(x, y)
        np.testing.assert_array_equal(y, x.T)
