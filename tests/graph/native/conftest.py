"""Fixtures of the tests of native segments."""

import pytest

from tests.graph.native.nets import draw_anew
from tests.kernels.native.conftest import HOST_ISAS
from tests.machines import MACHINES


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def isa(request):
    """Return each instruction set that this machine runs, one for each vector width."""
    return request.param


@pytest.fixture(params=MACHINES, ids=lambda isa: isa.name)
def machine(request):
    """Return each described machine, whether or not this one is like it, for assertions about choices."""
    return request.param


@pytest.fixture(autouse=True)
def own_draws() -> None:
    """Reset the random numbers, so that a test draws the same ones whichever tests ran before it."""
    draw_anew()
