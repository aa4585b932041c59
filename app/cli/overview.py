"""`edgewise --help`, in the look that typer and rich give to the help of each command, without importing either (0.3 s)."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # type checkers take it as true; `typing` takes 15 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OPTIONS = {"--version": "Print the version.", "--help": "Show this message and exit."}
NAME, FRAME, PLAIN = "\033[1;36m", "\033[2m", "\033[0m"
LEAST_WIDTH = 44
_ASCII = str.maketrans("╭╮╰╯─│", "++++-|")


def overview(about: str, commands: Mapping[str, str]) -> str:
    """Render usage, options and commands as wide as the terminal, in colour where it takes colour."""
    width = max(_terminal_width(), LEAST_WIDTH)
    lines = ["", " Usage: edgewise [OPTIONS] COMMAND [ARGS]...", ""]
    lines += [f" {line}" for line in _wrapped(about, width - 2)]
    lines += ["", *_panel("Options", OPTIONS, width), *_panel("Commands", commands, width), ""]
    text = "\n".join(lines) + "\n"
    if not _takes_colour():
        for code in (NAME, FRAME, PLAIN):
            text = text.replace(code, "")
    return text if "utf" in (sys.stdout.encoding or "").lower() else text.translate(_ASCII)


def _panel(title: str, rows: Mapping[str, str], width: int) -> Iterator[str]:
    """Draw a frame around names and what they are, each wrapped in its column."""
    longest = max(map(len, rows))
    yield f"{FRAME}╭─ {title} {'─' * (width - len(title) - 5)}╮{PLAIN}"
    for name, meaning in rows.items():
        for at, line in enumerate(_wrapped(meaning, width - longest - 6)):
            shown = "" if at else name
            yield f"{FRAME}│{PLAIN} {NAME}{shown:{longest}}{PLAIN}  {line:{width - longest - 6}} {FRAME}│{PLAIN}"
    yield f"{FRAME}╰{'─' * (width - 2)}╯{PLAIN}"


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Break a text between words into lines of at most `width` characters (`textwrap` imports `re`: 13 ms)."""
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _terminal_width() -> int:
    """Read the width as rich does: COLUMNS, else the terminal's, else 80."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal():
        return int(columns)
    for descriptor in (0, 2, 1):
        try:
            return os.get_terminal_size(descriptor).columns
        except OSError:  # it is no terminal, or closed
            continue
    return 80


def _takes_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
