"""String tensors: StringConcat, StringSplit, StringNormalizer. All other ops on strings move them unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, InvalidError, ShapeError
from kernels.operands import broadcast, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import STRING, Array, Spec

_MOST_CHARACTERS = 1 << 28  # of one result: its pointers alone are counted where memory is planned
_STRINGS = frozenset({STRING})
_CHANGES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


def infer_concat(x: Spec, y: Spec) -> Spec:
    """Broadcast shape."""
    require_dtype("StringConcat: x", x, _STRINGS)
    require_dtype("StringConcat: y", y, _STRINGS)
    return Spec(broadcast("StringConcat", x.shape, y.shape), STRING)


def run_concat(out: tuple[Array, ...], x: Array, y: Array) -> None:
    """x before y. Raises InvalidError for more characters than _MOST_CHARACTERS: a chain of these doubles them at every step."""
    characters = int(np.sum(_lengths(x) + _lengths(y)))
    if characters > _MOST_CHARACTERS:
        raise InvalidError(f"StringConcat: its texts have {characters} characters together, the limit is {_MOST_CHARACTERS}")
    np.add(x, y, out=out[0])


def _lengths(x: Array) -> Array:
    return np.fromiter(map(len, x.flat), np.int64, x.size).reshape(x.shape)


def _pieces(x: Array, delimiter: str | None, maxsplit: int | None) -> list[list[str]]:
    return [text.split(delimiter or None, -1 if maxsplit is None else maxsplit) for text in x.ravel().tolist()]


def infer_split(x: Spec, *, delimiter: str | None = None, maxsplit: int | None = None) -> tuple[Spec, Spec]:
    """The pieces, padded to the largest number of pieces, and the number of pieces of each string."""
    require_dtype("StringSplit: x", x, _STRINGS)
    pieces = _pieces(x.known("StringSplit: x"), delimiter, maxsplit)
    return Spec((*x.shape, max(map(len, pieces), default=0)), STRING), Spec(x.shape, np.dtype(np.int64))


def run_split(out: tuple[Array | None, ...], x: Array, *, delimiter: str | None = None, maxsplit: int | None = None) -> None:
    """Short rows are filled up with empty strings."""
    pieces = _pieces(x, delimiter, maxsplit)
    if out[0] is not None:
        width = out[0].shape[-1]
        out[0].reshape(-1)[:] = [text for row in pieces for text in row + [""] * (width - len(row))]
    if len(out) > 1 and out[1] is not None:
        out[1].reshape(-1)[:] = [len(row) for row in pieces]


def _normalised(x: Array, change: str, case_sensitive: int, stopwords: Sequence[str]) -> list[str]:
    def folded(text: str) -> str:
        return text if case_sensitive else text.lower()

    stopped = set(map(folded, stopwords))
    return [_CHANGES[change](text) for text in x.ravel().tolist() if folded(text) not in stopped] or [""]


def infer_normalizer(
    x: Spec,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] = (),
) -> Spec:
    """(c) or (1, c) without the stop words; one empty string when none is left. The locale plays no part."""
    require_dtype("StringNormalizer: x", x, _STRINGS)
    one_of("StringNormalizer: attribute case_change_action", case_change_action, _CHANGES)
    if x.rank not in (1, 2) or (x.rank == 2 and x.shape[0] != 1):
        raise ShapeError(f"StringNormalizer: x is {x}, need (c) or (1, c)")
    kept = _normalised(x.known("StringNormalizer: x"), case_change_action, is_case_sensitive, stopwords)
    return Spec((*x.shape[:-1], len(kept)), STRING)


def run_normalizer(
    out: tuple[Array, ...],
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] = (),
) -> None:
    """Stop words out, then the case changed."""
    out[0].reshape(-1)[:] = _normalised(x, case_change_action, is_case_sensitive, stopwords)


def _words(*texts: str) -> Array:
    return np.array(texts, STRING)


_CONCAT = (
    Case("broadcast", inputs=(_words("a", "bc"), _words("!")), cost=Cost()),
    Case("empty", inputs=(_words(), _words("x"))),
    Case("shapes_differ", inputs=(_words("a", "b"), _words("a", "b", "c")), raises=ShapeError),
    Case("numbers", inputs=((2,), (2,)), raises=DTypeError),
)
_SPLIT = (
    Case("whitespace", inputs=(_words("hello  there", "one"),), outputs=2, cost=Cost()),
    Case("delimiter", inputs=(_words("a-b--c", ""),), attrs={"delimiter": "-"}, outputs=2),
    Case("limited", inputs=(_words("a b c d"),), attrs={"maxsplit": 2}, outputs=2),
    Case("numbers", inputs=((2,),), raises=DTypeError, outputs=2),
)
_NORMALIZER = (
    Case("upper", inputs=(_words("monday", "Tuesday"),), attrs={"case_change_action": "UPPER"}, cost=Cost()),
    Case("stopped", inputs=(_words("monday", "Tuesday"),), attrs={"stopwords": ("Monday",)}),
    Case("all_stopped", inputs=(_words("a").reshape(1, 1),), attrs={"stopwords": ("a",), "is_case_sensitive": 1}),
    Case("unknown_action", inputs=(_words("a"),), attrs={"case_change_action": "TITLE"}, raises=AttributeValueError),
    Case("two_rows", inputs=(_words("a", "b").reshape(2, 1),), raises=ShapeError),
)

OPS = (
    Op("StringConcat", infer_concat, moves, (Kernel("add", run_concat),), elementwise=True, cases=_CONCAT),
    Op("StringSplit", infer_split, moves, (Kernel("split", run_split),), cases=_SPLIT),
    Op("StringNormalizer", infer_normalizer, moves, (Kernel("filter", run_normalizer),), cases=_NORMALIZER),
)
