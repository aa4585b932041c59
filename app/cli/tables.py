"""Tables that fit their terminal: figures are never cut, names lose their middle, columns are left out by rank."""

from __future__ import annotations

from collections.abc import Sequence

from rich.bar import Bar
from rich.table import Table

from kernels.record import record

AROUND = 3  # characters around a cell: two blanks and a line
MOST_TEXT = 44


@record
class Column:
    """A column. least: the width that its texts may be cut to, in characters; None for figures and bars, which are never cut.

    rank: columns of the highest rank are left out first; those of rank 0 never.
    """

    title: str
    cells: Sequence[str | Bar]
    least: int | None = None
    rank: int = 0

    @property
    def whole(self) -> int:
        """Width in characters where there is room."""
        widths = [(cell.width or 0) if isinstance(cell, Bar) else len(cell) for cell in self.cells]
        longest = max((len(self.title), *widths))
        return longest if self.least is None else min(longest, MOST_TEXT)

    @property
    def needed(self) -> int:
        """Width in characters with its texts cut as short as they may be."""
        return self.whole if self.least is None else min(self.least, self.whole)


def fitted(title: str | None, columns: Sequence[Column], width: int) -> Table:
    """Lay out a table of at most `width` characters, if the columns of rank 0 fit. Spare room goes to the first texts."""
    shown = list(columns)
    while _needed(shown) > width and any(column.rank for column in shown):
        shown.remove(max(shown, key=lambda column: column.rank))
    left_out = [column.title for column in columns if column.title and column not in shown]
    caption = f"no room for {', '.join(left_out)}" if left_out else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    room, widths = max(0, width - _needed(shown)), []
    for column in shown:
        more = min(room, column.whole - column.needed)
        room -= more
        widths.append(column.needed + more)
        figures = column.least is None and column.title
        table.add_column(column.title, justify="right" if figures else "left", no_wrap=True, min_width=widths[-1])
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*(_cut(cell, most) if isinstance(cell, str) else cell for cell, most in zip(row, widths, strict=True)))
    return table


def _needed(columns: Sequence[Column]) -> int:
    return 1 + sum(column.needed + AROUND for column in columns)


def _cut(text: str, most: int) -> str:
    """Cut the middle out of a text that is too long; two thirds of the rest is its end, where names of one model differ."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
