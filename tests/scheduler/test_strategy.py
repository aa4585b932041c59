from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.precision import PRECISIONS
from scheduler.errors import StrategyFormatError
from scheduler.strategy import Strategy

NAMES = st.from_regex(r"[A-Za-z0-9_.+-]{1,12}", fullmatch=True)
STRATEGIES = st.builds(
    Strategy,
    NAMES,
    NAMES,
    st.sampled_from(PRECISIONS),
    st.integers(1, 4096),
    st.dictionaries(NAMES, NAMES, max_size=4).map(lambda params: tuple(sorted(params.items()))),
)


@given(STRATEGIES)
def test_strategy_text_reads_back_equal(strategy):
    assert Strategy.parse(str(strategy)) == strategy


def test_strategy_text_is_the_documented_form():
    strategy = Strategy("native", "direct", "fp32", 2, (("layout", "nchw16c"), ("tile", "6x4")))
    assert str(strategy) == "native/direct{layout=nchw16c,tile=6x4}/fp32/t2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "numpy",
        "numpy/rows/fp32",
        "numpy/rows/fp8/t1",
        "numpy/rows/fp32/t0",
        "numpy/rows/fp32/t01",
        "numpy/rows/fp32/t99999",
        "numpy/ro ws/fp32/t1",
        "numpy/rows{}/fp32/t1",
        "numpy/rows{b=1,a=2}/fp32/t1",
        "numpy/rows{a=1,a=2}/fp32/t1",
        "numpy/rows{a}/fp32/t1",
        "numpy/rows/fp32/t1\n",
    ],
)
def test_strategy_text_that_is_not_canonical_is_refused(text):
    with pytest.raises(StrategyFormatError, match="strategy"):
        Strategy.parse(text)


def test_strategy_too_long_for_an_index_is_refused():
    with pytest.raises(StrategyFormatError, match="512"):
        Strategy("numpy", "rows", params=tuple((f"p{i}", "x" * 60) for i in range(9)))
