"""The definition of an operator, and the registry of all operators.

Each file of `kernels/ops/` holds one operator, or one family of trivially alike operators. Every `Op` at module level there is
registered under its name; two of one name are an error. Adding an op touches one file, and deleting the file removes it. A file
is imported when one of its ops is first looked up (`kernels.index`).

An op is plain functions over specs and arrays, all called alike, inputs by position and attributes by keyword:

    infer(*inputs: Spec | None, **attrs) -> Spec | tuple[Spec, ...]     shapes and dtypes, all outputs; refuses bad input
    cost(out: tuple[Spec, ...], *inputs: Spec | None, **attrs) -> Cost  the arithmetic
    run(out: tuple[Array | None, ...], *inputs: Array | None, **attrs)  fills every element of every array in `out`
    expression(draft: Draft, *inputs: Term | None, **attrs) -> Term | None   of elementwise ops: the same computation as data

An absent optional input is None. `out[i]` is None where output i is not read. Attribute names and defaults are the
keywords of `infer`; `cost` and `run` are called with the same full set. Where an output's shape depends on an input's
value, `infer` asks `spec.known(...)`: at run time every spec carries its value, so `infer` then always succeeds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from kernels.batch_axis import RowRule, broadcast_keeps_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, EdgewiseError, ShapeError, UnknownOpError, UnsupportedError
from kernels.expression import Express
from kernels.index import homes, modules
from kernels.record import record
from kernels.scratch import Scratch, twice
from kernels.spec import MAX_RANK, Array, DType, Spec

Attrs = Mapping[str, Any]
Upgrade = Callable[[int, dict[str, Any], int], tuple[dict[str, Any], dict[int, Array]]]


@record
class Kernel:
    """One numpy algorithm for an op.

    run: as in the module docstring. `out` arrays are C-contiguous; inputs may be strided and must not be written.
        Called under np.errstate(all="ignore"): infinities and NaN are values, integers wrap.
    refuses: why this algorithm cannot take these specs, or None. Plans quote the reason.
    workspace_bytes: scratch memory of the kernel. Where given, `run` receives it as keyword `workspace` (uint8, 64-byte aligned).
    scratch_bytes: the most that `run` allocates by itself while it computes, called like `cost` (`kernels.scratch`). It holds for
        any values of the inputs; a test measures it. Runs that need more than their budget are refused before they start.
    executed_macs: MACs that the algorithm computes, where these differ from the op's cost (Winograd); None = the op's cost.
    """

    algorithm: str
    run: Callable[..., None]
    refuses: Callable[..., str | None] | None = None
    workspace_bytes: Callable[..., int] | None = None
    scratch_bytes: Scratch = twice
    executed_macs: Callable[..., int] | None = None

    def temporary_bytes(self, out: tuple[Spec, ...], inputs: Sequence[Spec | None], attrs: Attrs) -> int:
        """Return the most memory that a run takes beside its inputs and outputs: workspace and scratch."""
        workspace_bytes = 0 if self.workspace_bytes is None else self.workspace_bytes(*inputs, **attrs)
        return workspace_bytes + self.scratch_bytes(out, *inputs, **attrs)


@record
class Case:
    """One example of an op: generic suites run it on every backend, against float64 and against ONNX's definition.

    inputs: a shape tuple = seeded standard normal float32; an array = itself; None = absent.
    cost: counted by hand, checked exactly. raises: the error that `infer` must give.
    domain: (low, high) of the random inputs, for ops like Log. outputs: how many outputs are computed.
    """

    id: str
    inputs: tuple[tuple[int, ...] | Array | None, ...]
    attrs: Attrs = field(default_factory=dict)
    cost: Cost | None = None
    raises: type[EdgewiseError] | None = None
    domain: tuple[float, float] | None = None
    outputs: int = 1


@record
class Op:
    """Everything that is true of one operator.

    name: ONNX op_type; prefixed by its domain where that is not ai.onnx ("com.microsoft.FusedMatMul").
    kernels: numpy algorithms, the preferred first; the first that does not refuse is the default.
    elementwise: output 0 has the broadcast shape of the inputs, each element computed from its own index only, so `out[0]`
        may be the same memory as any input of the same shape and dtype, and the op may be fused behind another one.
    expression: how native kernels compute an element of output 0, in a loop of its own or before another op's result is stored;
        a function as in the module docstring (`kernels.expression`). It returns None for inputs that it has no expression for.
    view: output 0 is input 0's memory under another shape; the executor may alias instead of running it.
    deterministic: False for random ops, which are never folded.
    mixes_rows: the reason why rows of a batch may influence one another, or "" where they do not (`kernels/batch_axis.py`).
        None: unknown, and no batches are formed for a model with this op; but elementwise ops follow the rule of broadcasting.
    upgrade: (opset, attrs, number of outputs) -> (attrs, {position: constant input}): rewrites a node of an older opset
        into the newest form, so that the functions here know that form only.
    parts: how it is written as other ops (`kernels.composite`): (input specs, attrs) -> parts and outputs. None for most.
    tolerance_eps: allowed error against float64, in epsilons of the output's dtype relative to the largest output.
    """

    name: str
    infer: Callable[..., Spec | tuple[Spec, ...]]
    cost: Callable[..., Cost] | None
    kernels: tuple[Kernel, ...]
    elementwise: bool = False
    expression: Express | None = None
    view: bool = False
    deterministic: bool = True
    mixes_rows: RowRule | None = None
    upgrade: Upgrade | None = None
    parts: Callable[[Sequence[Spec | None], Attrs], Any] | None = None
    tolerance_eps: float = 4
    cases: tuple[Case, ...] = ()

    @property
    def defaults(self) -> Attrs:
        """Attribute names and default values; a required attribute has inspect.Parameter.empty."""
        return _defaults(self.infer)

    @property
    def row_rule(self) -> RowRule | None:
        """The rule for rows of a batch: `mixes_rows`, or broadcasting for an elementwise op; None where it is unknown."""
        return broadcast_keeps_rows if self.mixes_rows is None and self.elementwise else self.mixes_rows

    def bind(self, attrs: Attrs) -> dict[str, Any]:
        """Fill in default attributes.

        Raises UnsupportedError on an unknown attribute, AttributeValueError on one that is missing or of another type than
        `infer` declares. An op may rely on the types of its attributes afterwards.
        """
        defaults = self.defaults
        if unknown := sorted(set(attrs) - set(defaults)):
            raise UnsupportedError(f"{self.name}: attribute {unknown[0]!r} is unknown, it has {sorted(defaults)}")
        bound = {**defaults, **attrs}
        types = _types(self.infer)
        for name, value in bound.items():
            if value is inspect.Parameter.empty:
                raise AttributeValueError(f"{self.name}: attribute {name!r} is missing, it has no default")
            if value is not defaults[name] and not _IS_OF_TYPE[types[name]](value):
                raise AttributeValueError(f"{self.name}: attribute {name!r} is {str(value)[:40]!r}, need {types[name]}")
        return bound

    def infer_specs(self, inputs: Sequence[Spec | None], attrs: Attrs) -> tuple[Spec, ...]:
        """Infer the specs of all outputs of a node with bound attributes.

        Raises ShapeError for missing or extra inputs, and for an output whose shape no array can have though its bytes are few.
        """
        if misfit := _misfit(self.infer, len(inputs), tuple(attrs)):
            raise ShapeError(f"{self.name}: got {len(inputs)} inputs, {misfit}")
        for position, name in _required_inputs(self.infer):
            if inputs[position] is None:
                raise ShapeError(f"{self.name}: input {position} ({name}) is absent, only optional ones may be")
        made = self.infer(*inputs, **attrs)
        specs = made if isinstance(made, tuple) else (made,)
        for spec in specs:
            if spec.hides_its_size:
                limit = f"an array has at most {MAX_RANK} dimensions, and less than 2⁶³ bytes without those of size 0"
                raise ShapeError(f"{self.name}: an output is {spec!s:.200}, {limit}")
        return specs

    def count(self, inputs: Sequence[Spec | None], outputs: tuple[Spec, ...], attrs: Attrs) -> Cost | None:
        """Return the cost of a node with bound attributes; None where the op has no formula."""
        return None if self.cost is None else self.cost(outputs, *inputs, **attrs)

    def choose(self, inputs: Sequence[Spec | None], attrs: Attrs, algorithm: str | None = None) -> Kernel:
        """Return the named kernel, or the first that takes these specs. Raises UnsupportedError with every kernel's reason."""
        refusals = []
        for kernel in self.kernels:
            if algorithm not in (None, kernel.algorithm):
                continue
            reason = kernel.refuses(*inputs, **attrs) if kernel.refuses else None
            if reason is None:
                return kernel
            refusals.append(f"{kernel.algorithm}: {reason}")
        known = ", ".join(kernel.algorithm for kernel in self.kernels)
        raise UnsupportedError(f"{self.name}: no kernel takes it, {'; '.join(refusals) or f'it has {known}'}")


def evaluation_bytes(op: Op, inputs: Sequence[Spec | None], made: tuple[Spec, ...], attrs: Attrs) -> int:
    """Return the most memory that `evaluate` takes for these inputs: outputs, workspace and scratch. Raises UnsupportedError."""
    kernel = op.choose(inputs, attrs)
    return sum(spec.nbytes for spec in made) + kernel.temporary_bytes(made, inputs, attrs)


def evaluate(op: Op, inputs: Sequence[Array | None], attrs: Attrs, algorithm: str | None = None) -> tuple[Array, ...]:
    """Infer, allocate and run one op on arrays, for constant folding and tests. Returns all outputs."""
    with np.errstate(all="ignore"):
        return _evaluate(op, inputs, op.bind(attrs), algorithm)


def _evaluate(op: Op, inputs: Sequence[Array | None], bound: Attrs, algorithm: str | None) -> tuple[Array, ...]:
    specs = tuple(None if array is None else Spec.of(array) for array in inputs)
    made = op.infer_specs(specs, bound)  # first: kernels take for granted what it refuses
    kernel = op.choose(specs, bound, algorithm)
    out = tuple(np.empty(spec.shape, spec.dtype) for spec in made)
    extra = {}
    if kernel.workspace_bytes is not None:
        extra["workspace"] = np.empty(kernel.workspace_bytes(*specs, **bound), np.uint8)
    kernel.run(out, *inputs, **bound, **extra)
    return out


@functools.cache
def operators() -> Mapping[str, Op]:
    """Return every registered op by name; all files are imported. Raises EdgewiseError where two files register one name."""
    return MappingProxyType({name: op for name, (op, _) in sorted(_discovered().items())})


def home(name: str) -> str:
    """Return the module that registers an op, such as "kernels.ops.softmax". Raises KeyError where no op has that name."""
    return _discovered()[name][1]


@functools.cache
def _discovered() -> Mapping[str, tuple[Op, str]]:
    from kernels import ops  # noqa: PLC0415  the ops import this module

    found: dict[str, tuple[Op, str]] = {}
    for name in modules(ops):
        module = importlib.import_module(f"kernels.ops.{name}")
        for op in _exported(module):
            if found.setdefault(op.name, (op, module.__name__))[0] is not op:
                raise EdgewiseError(f"{op.name}: registered twice, each op lives in one file (kernels/ops/{name}.py)")
    return found


def _exported(module: ModuleType) -> Sequence[Op]:
    """Return the ops that a module registers."""
    return module.OPS if hasattr(module, "OPS") else [value for value in vars(module).values() if isinstance(value, Op)]


@functools.cache
def _homes() -> Mapping[str, str]:
    from kernels import ops  # noqa: PLC0415  the ops import this module
    from kernels.ops._index import DEFINES  # noqa: PLC0415

    return homes(ops, DEFINES)


@functools.lru_cache(1024)
def _found(name: str) -> Op | None:
    """Return the op of that name, or None. Its own file is imported, and all files where their index does not list it."""
    if (home := _homes().get(name)) is not None:
        for op in _exported(importlib.import_module(home)):
            if op.name == name:
                return op
    return operators().get(name)


def is_registered(name: str) -> bool:
    """Whether there is an op of that name."""
    return _found(name) is not None


def find(name: str) -> Op:
    """Return the op of that name. Raises UnknownOpError naming the closest names that exist."""
    if (op := _found(name)) is not None:
        return op
    import difflib  # noqa: PLC0415  only on the error path

    close = difflib.get_close_matches(name, operators(), n=3)
    hint = f", closest: {', '.join(close)}" if close else ""
    raise UnknownOpError(f"{name}: no such operator among the {len(operators())} registered{hint}")


def require_dtype(subject: str, spec: Spec, allowed: frozenset[DType]) -> None:
    """Raise DTypeError unless the spec's dtype is allowed."""
    if spec.dtype not in allowed:
        raise DTypeError(f"{subject}: dtype is {spec.dtype.name}, need one of {sorted(d.name for d in allowed)}")


def _all(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(isinstance(item, kind) for item in value)


_IS_OF_TYPE: Mapping[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int),
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float),
    "str": lambda value: isinstance(value, str),
    "Sequence[int]": _all(int),
    "Sequence[float]": lambda value: _all(int)(value) or _all(float)(value),
    "Sequence[str]": _all(str),
    "tuple[int, ...]": _all(int),
    "tuple[float, ...]": lambda value: _all(int)(value) or _all(float)(value),
    "tuple[str, ...]": _all(str),
    "Array": lambda value: isinstance(value, np.ndarray),
    "DType": lambda value: isinstance(value, np.dtype),
}


@functools.lru_cache(4096)
def _misfit(infer: Callable[..., Any], inputs: int, attrs: tuple[str, ...]) -> str:
    """Return why a function cannot be called with that many inputs and these attributes; "" where it can."""
    try:
        inspect.signature(infer).bind(*[None] * inputs, **dict.fromkeys(attrs))
    except TypeError as error:
        return str(error)
    return ""


@functools.cache
def _types(infer: Callable[..., Any]) -> Mapping[str, str]:
    """Return attribute names and their declared types as text, without an optional None."""
    keywords = inspect.signature(infer).parameters.values()
    return {p.name: p.annotation.removesuffix(" | None") for p in keywords if p.kind is inspect.Parameter.KEYWORD_ONLY}


@functools.cache
def _required_inputs(infer: Callable[..., Any]) -> tuple[tuple[int, str], ...]:
    """Return position and name of every input that is declared as `Spec`, not as `Spec | None`."""
    parameters = enumerate(inspect.signature(infer).parameters.values())
    return tuple((i, p.name) for i, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.annotation == "Spec")


@functools.cache
def _defaults(infer: Callable[..., Any]) -> Attrs:
    keywords = inspect.signature(infer).parameters.values()
    return MappingProxyType({p.name: p.default for p in keywords if p.kind is inspect.Parameter.KEYWORD_ONLY})
