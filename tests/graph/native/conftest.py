"""What the tests of native segments share."""

import pytest

from tests.native.conftest import HOST_ISAS


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def isa(request):
    """Every instruction set of distinct vector width that this machine runs."""
    return request.param
