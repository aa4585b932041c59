"""Strategies: one way to run one operator is a backend, an algorithm with its parameters, a precision and a thread count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from graph.choice import Backend, Choice
from kernels.errors import AttributeValueError, UnsupportedError
from kernels.precision import PRECISIONS, Precision
from scheduler.errors import StrategyFormatError

WantedBackend = Literal["auto", "native", "numpy"]
WantedPrecision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "auto"]  # "auto" leaves the choice to a plan, op by op

# In which products of float32 may be computed then, the one to use without a plan first. Only GPUs have kernels for the others.
OFFERED: Mapping[str, Sequence[Precision]] = {"fp32": ("fp32",), "bf16": ("bf16", "fp32"), "auto": ("fp32", "bf16")}

MAX_THREADS = 4096
MAX_TEXT = 512  # characters; it is part of an index key
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_TEXT = re.compile(
    r"(?P<backend>[^/{}]+)/(?P<algorithm>[^/{}]+)(?:\{(?P<params>[^/{}]+)\})?/(?P<precision>[^/{}]+)/t(?P<threads>[0-9]{1,4})"
)


@dataclass(frozen=True, slots=True, order=True)
class Strategy:
    """One way to run one operator.

    params: parameters of the algorithm (tile, layout) and their values, sorted by name. The text form is canonical and is the
    key under which measurements are stored: `numpy/im2col/fp32/t2`, `native/direct{layout=nchw16c,tile=6x4}/fp32/t2`.
    """

    backend: str
    algorithm: str
    precision: Precision = "fp32"
    threads: int = 1
    params: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for part, name in (("backend", self.backend), ("algorithm", self.algorithm)):
            _require_name(part, name)
        if self.precision not in PRECISIONS:
            raise StrategyFormatError(f"strategy: precision is {self.precision!r}, need one of {', '.join(PRECISIONS)}")
        if not 1 <= self.threads <= MAX_THREADS:
            raise StrategyFormatError(f"strategy: threads is {self.threads}, need 1..{MAX_THREADS}")
        for name, value in self.params:
            _require_name("param", name)
            _require_name(f"param {name}", value)
        names = [name for name, _ in self.params]
        if names != sorted(set(names)):
            raise StrategyFormatError(f"strategy: params are {', '.join(names)[:80]}, need each once, sorted by name")
        if len(str(self)) > MAX_TEXT:
            raise StrategyFormatError(f"strategy: {len(str(self))} characters, need at most {MAX_TEXT} ({str(self)[:80]}…)")

    def __str__(self) -> str:
        params = "{" + ",".join(f"{name}={value}" for name, value in self.params) + "}" if self.params else ""
        return f"{self.backend}/{self.algorithm}{params}/{self.precision}/t{self.threads}"

    @property
    def choice(self) -> Choice:
        """The part that the executor needs, all but the threads. Raises StrategyFormatError for an unknown backend."""
        if self.backend not in get_args(Backend):
            raise StrategyFormatError(f"strategy {self}: backend is {self.backend!r}, need one of {', '.join(get_args(Backend))}")
        return Choice(self.backend, self.algorithm, self.params, self.precision)  # type: ignore[arg-type]

    @staticmethod
    def of(choice: Choice, threads: int) -> Strategy:
        """Return the strategy of an executor's choice on that many threads."""
        return Strategy(choice.backend, choice.algorithm, choice.precision, threads, choice.params)

    @staticmethod
    def parse(text: str) -> Strategy:
        """Read the canonical text form. Raises StrategyFormatError unless `str` of the result is `text` again."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise StrategyFormatError(f"strategy: {text[:80]!r}, need backend/algorithm{{param=value,…}}/precision/tN")
        params = tuple(_split(pair) for pair in match["params"].split(",")) if match["params"] else ()
        strategy = Strategy(match["backend"], match["algorithm"], match["precision"], int(match["threads"]), params)  # type: ignore[arg-type]
        if str(strategy) != text:
            raise StrategyFormatError(f"strategy: {text[:80]!r}, its canonical form is {strategy}")
        return strategy


def _split(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return name, value


def _require_name(part: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise StrategyFormatError(f"strategy: {part} is {name[:80]!r}, need 1..64 of letters, digits and _ . + -")


def require_offered(what: str, precision: str) -> None:
    """Raise AttributeValueError for a name that means no precision, UnsupportedError for one without kernels in this build."""
    names = get_args(WantedPrecision)
    if precision not in names:
        raise AttributeValueError(f"{what}: precision is {precision!r}, need one of {', '.join(names)}")
    if precision not in OFFERED:
        raise UnsupportedError(f"{what}: precision {precision} is not available in this build, it has {', '.join(OFFERED)}")
