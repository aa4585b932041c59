"""Fixtures of the tests of native segments."""

import pytest

from tests.graph.native.nets import draw_anew
from tests.kernels.native.conftest import HOST_ISAS
from tests.machines import MACHINES


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def isa(request):
    """Every instruction set of distinct vector width that this machine runs."""
    return request.param


@pytest.fixture(params=MACHINES, ids=lambda isa: isa.name)
def machine(request):
    """Every described machine, also those unlike this one: for assertions about choices."""
    return request.param


@pytest.fixture(autouse=True)
def own_draws() -> None:
    """Every test draws the same numbers, regardless of the tests that ran before it."""
    draw_anew()
