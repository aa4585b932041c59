"""Pages and the command line write numbers with units alike."""

from profiler.units import quantity
from tests.browser.watching import Watch

VALUES = [0, 1, 12, 999, 1000, -1234, 98_765, 1_250_001, 300_774_272, 5e9, 7.26e12, 3e15]


def test_pages_write_quantities_as_the_command_line_does(watch: Watch) -> None:
    page = watch.open("/")
    shown = page.evaluate(
        "(cases) => import('/static/js/format.js').then(({ quantity }) => cases.map(([value, unit]) => quantity(value, unit)))",
        cases := [(value, unit) for value in VALUES for unit in ("B", "MACs", "")],
    )
    assert shown == [quantity(value, unit) for value, unit in cases]
