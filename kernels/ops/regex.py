"""RegexFullMatch: which strings a regular expression matches as a whole, in the syntax of RE2.

The expression runs in the Rust crate `regex`, which pydantic brings along: as RE2 it takes time in proportion to the text for any
expression, and bounds the memory of a compiled one. Where its syntax differs from RE2's, the expression is rewritten: classes
such as \\d are of ASCII, a bracket or an ampersand in a class stands for itself, and \\Q…\\E quotes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import BOOL, STRING, Array, Spec

MOST_CHARACTERS = 1 << 12  # of an expression

_ASCII = {"d": "0-9", "s": r"\t\n\f\r ", "w": "0-9A-Za-z_"}
_TOKEN = re.compile(r"\\Q(?P<quoted>.*?)(?:\\E|\Z)|\\(?P<escape>.)|\[:\^?[a-z]+:\]|(?P<char>.)", re.DOTALL)


def infer(x: Spec, *, pattern: str) -> Spec:
    """A bool for each string."""
    require_dtype("RegexFullMatch: x", x, frozenset({STRING}))
    _matcher(pattern)
    return Spec(x.shape, BOOL)


def cost(out: tuple[Spec, ...], x: Spec, *, pattern: str) -> Cost:
    """0: it reads text and computes no numbers."""
    return Cost()


def run(out: tuple[Array, ...], x: Array, *, pattern: str) -> None:
    """String by string."""
    matches = _matcher(pattern)
    out[0].reshape(-1)[:] = [matches(text) for text in x.ravel().tolist()]


@functools.lru_cache(64)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that says whether the expression matches a whole string. Raises AttributeValueError for no expression."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # noqa: PLC0415  few models match strings

    if len(pattern) > MOST_CHARACTERS:
        raise AttributeValueError(f"RegexFullMatch: pattern has {len(pattern)} characters, the limit is {MOST_CHARACTERS}")
    schema = core_schema.str_schema(pattern=rf"\A(?:{_rewritten(pattern)})\z", regex_engine="rust-regex", strict=True)
    try:
        validator = SchemaValidator(schema)
    except SchemaError as error:
        reason = " ".join(str(error).split())[-200:]
        raise AttributeValueError(f"RegexFullMatch: pattern is {pattern[:40]!r}, need RE2 syntax: {reason}") from None
    return validator.isinstance_python


def _rewritten(pattern: str) -> str:
    """Return an RE2 expression in the syntax of the crate."""
    made: list[str] = []
    in_class = first = False
    for token in _TOKEN.finditer(pattern):
        text, escape, char = token[0], token["escape"], token["char"]
        if token["quoted"] is not None:
            text = "".join(f"\\{c}" if not c.isalnum() and c.isascii() and c.isprintable() else c for c in token["quoted"])
        elif escape is not None:
            text = _escaped(escape, in_class)
        elif in_class and char == "]" and not first:
            in_class = False
        elif in_class and char is not None and (char in "[]&~" or (char == "-" and made[-1] == "-")):
            text = f"\\{char}"
        elif in_class and text.startswith("[:"):
            pass
        elif char == "[":
            in_class, first = True, True
            made.append(text)
            continue
        first = in_class and first and char == "^"
        made.append(text)
    return "".join(made)


def _escaped(escape: str, in_class: bool) -> str:
    if escape in _ASCII:
        return _ASCII[escape] if in_class else f"[{_ASCII[escape]}]"
    if escape.lower() in _ASCII and escape.isupper():
        return f"[^{_ASCII[escape.lower()]}]"
    if escape in "bB" and not in_class:
        return f"(?-u:\\{escape})"
    return f"\\{escape}"


def _words(*texts: str) -> Array:
    return np.array(texts, STRING)


REGEX_FULL_MATCH = Op(
    "RegexFullMatch",
    infer,
    cost,
    (Kernel("automaton", run),),
    cases=(
        Case(
            "whole",
            inputs=(_words("www.google.com", "http://a.com", ""),),
            attrs={"pattern": r"www\.[\w.-]+\.\bcom\b"},
            cost=Cost(),
        ),
        Case("nothing", inputs=(_words("", "a"),), attrs={"pattern": ""}),
        Case("alternatives", inputs=(_words("ab", "cd", "abcd"),), attrs={"pattern": "ab|cd"}),
        Case("backtracks", inputs=(_words("a" * 60),), attrs={"pattern": "(a*)*b"}),
        Case("line_end", inputs=(_words("a\n", "a"),), attrs={"pattern": "a$"}),
        Case("classes", inputs=(_words("[", "&", "]", "٣", "d"),), attrs={"pattern": r"[][&&[:digit:]\d]"}),
        Case("empty", inputs=(_words(),), attrs={"pattern": "a"}),
        Case("unclosed", inputs=(_words("a"),), attrs={"pattern": "(a"}, raises=AttributeValueError),
        Case("backreference", inputs=(_words("aa"),), attrs={"pattern": r"(a)\1"}, raises=AttributeValueError),
        Case("look_ahead", inputs=(_words("a"),), attrs={"pattern": "(?=a)a"}, raises=AttributeValueError),
        Case("too_large", inputs=(_words("a"),), attrs={"pattern": "((a{999}){999}){999}"}, raises=AttributeValueError),
        Case("numbers", inputs=((2,),), attrs={"pattern": "a"}, raises=DTypeError),
    ),
)
