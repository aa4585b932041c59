"""A small typed builder of LLVM IR text that reads like the loop nest it makes.

    module = Module(isa)
    with module.function("scale", {"x": PTR, "y": PTR, "n": I64}) as (k, x, y, n):
        with k.loop("i", 0, n, isa.lanes) as i:
            k.store(k.load(k.f32, x, i) * 2.0, y, i)
    module.text

Values are typed and immutable; `+ - * /` work on values of one type and on Python numbers, which become constants of it.
Integer constants fold, so an emitter writes `row * stride + 3` whether `row` is known or not. Loads and stores never
assume more alignment than they are told: the default is one element's. Addresses are pointer plus index (`getelementptr`)
only: pointers turned into integers and back may be miscompiled when loops are unrolled.

NaN: ONNX's Relu, Clip, Max and Min propagate NaN, and so do `maximum` and `minimum`. `at_least` and `at_most` clamp by a
bound that is never NaN: then one instruction (x86 `max` with the operands in that order) propagates x's NaN as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kernels.native.emit.types import F32, I1, I32, I64, PTR, VOID, Type, literal
from kernels.native.errors import EmitError
from kernels.native.target.isa import Isa

FEW_LANES = 4  # of vectors whose lanes are loaded one by one without a loop, where there are no masks
_FOLD: Mapping[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "udiv": operator.floordiv, "urem": operator.mod,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An SSA value or a constant. ref: how IR text names it. known: its number where it is a scalar integer constant."""

    k: Function = field(repr=False)
    type: Type
    ref: str
    known: int | None = None

    def __str__(self) -> str:
        return f"{self.type.text} {self.ref}"

    def __add__(self, other: Operand) -> Value:
        return self.k.binary("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.k.binary("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.k.binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.k.binary("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.k.binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.k.binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.k.binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.k.binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Value:
        return self.k.binary("udiv", self, other)

    def __mod__(self, other: Operand) -> Value:
        return self.k.binary("urem", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.k.binary("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.k.binary("or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return self.k.binary("xor", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.k.compare("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.k.compare("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.k.compare("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.k.compare("ge", self, other)

    def __neg__(self) -> Value:
        return self.k.op(f"fneg {self}", self.type, "neg")


Operand = Value | int | float


@dataclass(slots=True)
class Fold:
    """The state of a loop that carries values: `values` are the current ones inside the body and the final ones after it."""

    index: Value
    values: list[Value]


@dataclass(slots=True)
class Module:
    """One compilation unit. `text` is its IR. Functions are internal unless they are built as exported."""

    isa: Isa
    _bodies: list[str] = field(default_factory=list)
    _declarations: dict[str, str] = field(default_factory=dict)
    _tables: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def function(
        self, name: str, arguments: Mapping[str, Type], *, returns: Type = VOID, exported: bool = True, attributes: str = ""
    ) -> Iterator[tuple[Function, *tuple[Value, ...]]]:
        """Open a function; the body yields its builder and its arguments. Pointers may alias: an operand may be the output."""
        k = Function(self, returns)
        values = tuple(Value(k, kind, f"%{argument}") for argument, kind in arguments.items())
        yield (k, *values)
        if returns == VOID:
            k.emit("ret void")
        parameters = ", ".join(f"{v.type.text} {v.ref}" for v in values)
        linkage = "" if exported else "internal "
        head = f"define {linkage}{returns.text} @{name}({parameters}) {attributes or 'nounwind'} #0 {{"
        self._bodies.append("\n".join((head, "entry:", *k.reserved, *k.lines, "}")))

    def declare(self, name: str, returns: Type, arguments: Sequence[Type], attributes: str = "") -> None:
        """Declare an intrinsic or a function defined elsewhere; declaring it twice is harmless."""
        signature = ", ".join(kind.text for kind in arguments)
        self._declarations[name] = f"declare {returns.text} @{name}({signature}) {attributes}".rstrip()

    def table(self, function: Function, name: str, kind: Type, values: Sequence[float]) -> Value:
        """Return the address of constants in memory. Two calls with one name share one table."""
        elements = ", ".join(f"{kind.text} {literal(kind, value)}" for value in values)
        self._tables[name] = f"@{name} = internal constant [{len(values)} x {kind.text}] [{elements}]"
        return Value(function, PTR, f"@{name}")

    @property
    def text(self) -> str:
        """The IR of the whole unit."""
        attributes = f'"target-cpu"="{self.isa.cpu}" "prefer-vector-width"="{self.isa.vector_bits}"'
        head = (*sorted(self._declarations.values()), *self._tables.values())
        return "\n".join(
            (f'target triple = "{self.isa.triple}"', *head, "", *self._bodies, "",
             f"attributes #0 = {{ {attributes} }}", "")
        )  # fmt: skip


class Function:
    """The body of one function under construction: instructions are appended where it stands."""

    def __init__(self, module: Module, returns: Type = VOID) -> None:
        self.module = module
        self.isa = module.isa
        self.returns = returns
        self.lines: list[str] = []
        self.reserved: list[str] = []  # memory on the stack, at the beginning of the function
        self.block = "entry"
        self._names: dict[str, int] = {}

    @property
    def f32(self) -> Type:
        """The type of a full vector of fp32."""
        return F32.by(self.isa.lanes)

    # Text

    def fresh(self, hint: str) -> str:
        """Return a name that no other value or block of this function has: `hint.0`, `hint.1`, `hint.2`…"""
        count = self._names.get(hint, 0)
        self._names[hint] = count + 1
        return f"{hint}.{count}"

    def emit(self, line: str) -> None:
        """Append one instruction that has no result."""
        self.lines.append(f"  {line}")

    def op(self, instruction: str, kind: Type, hint: str = "v") -> Value:
        """Append one instruction and name its result."""
        ref = f"%{self.fresh(hint)}"
        self.lines.append(f"  {ref} = {instruction}")
        return Value(self, kind, ref)

    def comment(self, text: str) -> None:
        """Append a comment to the IR."""
        self.lines.append(f"  ; {text}")

    def label(self, name: str) -> None:
        """Begin a block; the previous one must have ended."""
        self.lines.append(f"{name}:")
        self.block = name

    # Constants

    def const(self, kind: Type, value: float | Sequence[float]) -> Value:
        """Return a constant; one number fills every lane."""
        known = int(value) if kind.lanes == 1 and not kind.is_float and not isinstance(value, Sequence) else None
        return Value(self, kind, literal(kind, value), known)

    def zero(self, kind: Type) -> Value:
        """Return a constant whose bits are all zero."""
        return Value(self, kind, "zeroinitializer") if kind.lanes > 1 else self.const(kind, 0)

    def coerce(self, value: Operand, kind: Type) -> Value:
        """Return a Python number as a constant of the type, or a value unchanged. Raises EmitError where its type differs."""
        if not isinstance(value, Value):
            return self.const(kind, value)
        if value.type != kind:
            raise EmitError(f"{value.ref}: type is {value.type.text}, need {kind.text}")
        return value

    # Arithmetic

    def binary(self, name: str, a: Operand, b: Operand) -> Value:
        """Emit one instruction of two operands. Scalar integer constants are folded, and so are +0, *1 and *0."""
        kind = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else I64
        left, right = self.coerce(a, kind), self.coerce(b, kind)
        if kind.is_float:
            return self.op(f"f{name} {kind.text} {left.ref}, {right.ref}", kind, name)
        if left.known is not None and right.known is not None and name in _FOLD:
            return self.const(kind, _FOLD[name](left.known, right.known))
        folded = self._identity(name, left, right)
        if folded is not None:
            return folded
        flags = " nsw" if name in {"add", "sub", "mul"} and kind == I64 else ""
        return self.op(f"{name}{flags} {kind.text} {left.ref}, {right.ref}", kind, name)

    def _identity(self, name: str, a: Value, b: Value) -> Value | None:
        if name == "mul" and 0 in (a.known, b.known):
            return self.const(a.type, 0)
        if (name, b.known) in {("add", 0), ("sub", 0), ("mul", 1), ("udiv", 1)}:
            return a
        if (name, a.known) in {("add", 0), ("mul", 1)}:
            return b
        return self.const(a.type, 0) if name == "urem" and b.known == 1 else None

    def shift(self, name: str, a: Value, bits: int) -> Value:
        """shl, lshr or ashr by a constant."""
        return self.op(f"{name} {a}, {literal(a.type, bits)}", a.type, name)

    def intrinsic(self, name: str, kind: Type, *arguments: Value) -> Value:
        """Call an LLVM intrinsic overloaded on its result type."""
        return self.call(f"llvm.{name}.{kind.mangled}", kind, *arguments)

    def call(self, name: str, returns: Type, *arguments: Value) -> Value:
        """Call a function by name, declaring it where it is not defined in this module."""
        if name.startswith("llvm."):
            self.module.declare(name, returns, [argument.type for argument in arguments])
        text = f"call {returns.text} @{name}({', '.join(map(str, arguments))})"
        if returns == VOID:
            self.emit(text)
            return Value(self, VOID, "void")
        return self.op(text, returns, name.removeprefix("llvm.").partition(".")[0])

    def call_at(self, address: Value, *arguments: Value) -> None:
        """Call the function at an address, which returns nothing."""
        self.emit(f"call void {address.ref}({', '.join(map(str, arguments))})")

    def fma(self, a: Value, b: Operand, c: Operand) -> Value:
        """Return a·b + c, rounded once where the instruction set has FMA, else as a product and a sum."""
        factor, addend = self.coerce(b, a.type), self.coerce(c, a.type)
        if not self.isa.fma:
            return a * factor + addend
        return self.intrinsic("fma", a.type, a, factor, addend)

    def sqrt(self, a: Value) -> Value:
        """Square root, correctly rounded."""
        return self.intrinsic("sqrt", a.type, a)

    def abs(self, a: Value) -> Value:
        """Return the magnitude; the sign of NaN is cleared too."""
        return self.intrinsic("fabs", a.type, a)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        """Return the magnitude of one value with the sign of the other."""
        return self.intrinsic("copysign", magnitude.type, magnitude, sign)

    def round_even(self, a: Value) -> Value:
        """Round to the nearest integer, halves to even."""
        return self.intrinsic("roundeven", a.type, a)

    def floor(self, a: Value) -> Value:
        """Round down to an integer."""
        return self.intrinsic("floor", a.type, a)

    def at_least(self, a: Value, bound: Operand) -> Value:
        """max(a, bound); NaN in `a` stays. `bound` must not be NaN."""
        return self._clamp("ogt", a, self.coerce(bound, a.type))

    def at_most(self, a: Value, bound: Operand) -> Value:
        """min(a, bound); NaN in `a` stays. `bound` must not be NaN."""
        return self._clamp("olt", a, self.coerce(bound, a.type))

    def _clamp(self, predicate: str, a: Value, bound: Value) -> Value:
        if self.isa.arch == "aarch64":  # fmax and fmin propagate NaN
            return self.maximum(a, bound) if predicate == "ogt" else self.minimum(a, bound)
        exceeds = self.op(f"fcmp {predicate} {a.type.text} {bound.ref}, {a.ref}", I1.by(a.type.lanes), "exceeds")
        return self.select(exceeds, bound, a)

    def maximum(self, a: Value, b: Operand) -> Value:
        """Return the greater value, NaN where either is NaN. Of +0 and -0 it may be either."""
        return self._extreme("maximum", a, b)

    def minimum(self, a: Value, b: Operand) -> Value:
        """Return the lesser value, NaN where either is NaN. Of +0 and -0 it may be either."""
        return self._extreme("minimum", a, b)

    def _extreme(self, name: str, a: Value, b: Operand) -> Value:
        name, other = f"llvm.{name}.{a.type.mangled}", self.coerce(b, a.type)
        self.module.declare(name, a.type, [a.type, a.type])
        return self.op(f"call nsz {a.type.text} @{name}({a}, {other})", a.type, "extreme")  # ordering zeros costs 3 more on x86

    def compare(self, relation: str, a: Value, b: Operand) -> Value:
        """Compare lane by lane: lt, le, gt, ge, eq or ne. Integers are signed. With a NaN only `ne` is true."""
        prefix = "s" if relation in {"lt", "le", "gt", "ge"} else ""
        if a.type.is_float:
            prefix = "u" if relation == "ne" else "o"
        instruction = "fcmp" if a.type.is_float else "icmp"
        text = f"{instruction} {prefix}{relation} {a}, {self.coerce(b, a.type).ref}"
        return self.op(text, I1.by(a.type.lanes), relation)

    def is_not_null(self, address: Value) -> Value:
        """Test whether an address is not the null pointer."""
        return self.op(f"icmp ne {address}, null", I1, "some")

    def least(self, a: Operand, b: Operand) -> Value:
        """Return the lesser of two signed integers."""
        kind = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else I64
        return self.intrinsic("smin", kind, self.coerce(a, kind), self.coerce(b, kind))

    def most(self, a: Operand, b: Operand) -> Value:
        """Return the greater of two signed integers."""
        kind = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else I64
        return self.intrinsic("smax", kind, self.coerce(a, kind), self.coerce(b, kind))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """Return a where the condition holds, else b, lane by lane."""
        kind = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else F32
        return self.op(f"select {condition}, {self.coerce(a, kind)}, {self.coerce(b, kind)}", kind, "select")

    # Conversions

    def convert(self, instruction: str, a: Value, kind: Type) -> Value:
        """Convert to `kind` by an LLVM cast instruction: bitcast, fptosi, sitofp, zext, sext, trunc, fpext, fptrunc…"""
        return a if a.type == kind else self.op(f"{instruction} {a} to {kind.text}", kind, instruction)

    def opaque(self, a: Value) -> Value:
        """Return the same value, whose making LLVM does not look into: loops then do not compute it again, in pieces."""
        return self.op(f"freeze {a}", a.type, "same")

    # Lanes

    def splat(self, a: Operand, kind: Type) -> Value:
        """Return one scalar in every lane, spelled in the only way that LLVM folds into an embedded broadcast."""
        if not isinstance(a, Value):
            return self.const(kind, a)
        if kind.lanes == 1:
            return self.coerce(a, kind)
        one = self.op(f"insertelement {kind.text} poison, {self.coerce(a, kind.element)}, i32 0", kind, "lane")
        return self.op(
            f"shufflevector {one}, {kind.text} poison, <{kind.lanes} x i32> zeroinitializer", kind, "splat"
        )  # fmt: skip

    def shuffle(self, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
        """Pick lanes from a and b; lanes of b are numbered after those of a, -1 leaves a lane undefined."""
        picks = ", ".join(f"i32 {lane}" if lane >= 0 else "i32 poison" for lane in lanes)
        other = str(b) if b is not None else f"{a.type.text} poison"
        return self.op(f"shufflevector {a}, {other}, <{len(lanes)} x i32> <{picks}>", a.type.by(len(lanes)), "shuffle")

    def poison(self, kind: Type) -> Value:
        """Return an undefined value, for lanes that are never used."""
        return Value(self, kind, "poison")

    def insert(self, a: Value, element: Value, lane: int) -> Value:
        """Replace one lane of a vector by a scalar."""
        return self.op(f"insertelement {a}, {element}, i32 {lane}", a.type, "lane")

    def extract(self, a: Value, lane: int) -> Value:
        """Return one lane as a scalar."""
        return self.op(f"extractelement {a}, i32 {lane}", a.type.element, "lane")

    def reduce(self, a: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine all lanes into one scalar, by halves; the order depends on the width alone."""
        while a.type.lanes > 2:
            half = a.type.lanes // 2
            a = combine(self.shuffle(a, None, range(half)), self.shuffle(a, None, range(half, 2 * half)))
        return combine(self.extract(a, 0), self.extract(a, 1)) if a.type.lanes == 2 else a

    # Memory

    def offset(self, base: Value, index: Operand, kind: Type = F32) -> Value:
        """Return the address `index` elements of `kind` after `base`."""
        at = self.coerce(index, I64)
        return base if at.known == 0 else self.op(f"getelementptr {kind.scalar}, {base}, {at}", PTR, "at")

    def load(self, kind: Type, base: Value, index: Operand = 0, *, align: int | None = None) -> Value:
        """Read `kind` at element `index`. align: bytes the address is known to be a multiple of; default one element."""
        address = self.offset(base, index, kind)
        return self.op(f"load {kind.text}, {address}, align {align or kind.align_bytes}", kind, "load")

    def store(self, value: Value, base: Value, index: Operand = 0, *, align: int | None = None) -> None:
        """Write at element `index`; alignment as for `load`."""
        address = self.offset(base, index, value.type)
        self.emit(f"store {value}, {address}, align {align or value.type.align_bytes}")

    def broadcast(self, kind: Type, base: Value, index: Operand = 0) -> Value:
        """Load one element into every lane."""
        return self.splat(self.load(kind.element, base, index), kind)

    def load_part(self, kind: Type, base: Value, lanes: int, index: Operand = 0) -> Value:
        """Load the first `lanes` lanes and set the others to 0; no byte after them is read."""
        if lanes == kind.lanes:
            return self.load(kind, base, index)
        address = self.offset(base, index, kind)
        if self.isa.masks:
            arguments = (address, self.const(I32, kind.align_bytes), self.first(kind, lanes), self.zero(kind))
            return self.call(f"llvm.masked.load.{kind.mangled}.p0", kind, *arguments)
        whole = self.zero(kind)
        for start, width in _pieces(lanes):
            piece = self.load(kind.by(width), address, start)
            wide = (
                self.splat(piece, kind)
                if width == 1
                else self.shuffle(piece, None, [*range(width)] + [-1] * (kind.lanes - width))
            )
            picks = [kind.lanes + lane - start if start <= lane < start + width else lane for lane in range(kind.lanes)]
            whole = self.shuffle(whole, wide, picks)
        return whole

    def store_part(self, value: Value, base: Value, lanes: int, index: Operand = 0) -> None:
        """Store the first `lanes` lanes; no byte after them is written."""
        kind = value.type
        if lanes == kind.lanes:
            self.store(value, base, index)
            return
        address = self.offset(base, index, kind)
        if self.isa.masks:
            arguments = (value, address, self.const(I32, kind.align_bytes), self.first(kind, lanes))
            self.call(f"llvm.masked.store.{kind.mangled}.p0", VOID, *arguments)
            return
        for start, width in _pieces(lanes):
            piece = self.extract(value, start) if width == 1 else self.shuffle(value, None, range(start, start + width))
            self.store(piece, address, start)

    def first(self, kind: Type, lanes: int) -> Value:
        """Return a mask of the first `lanes` lanes of the type."""
        return self.const(I1.by(kind.lanes), [lane < lanes for lane in range(kind.lanes)])

    def first_lanes(self, kind: Type, count: Value) -> Value:
        """Return a mask of the first `count` lanes of the type, a number known when the code runs."""
        index = self.const(I32.by(kind.lanes), list(range(kind.lanes)))
        return self.compare("lt", index, self.splat(self.convert("trunc", count, I32), index.type))

    def load_first(self, kind: Type, base: Value, count: Value, stride: Value | None = None) -> Value:
        """Load the first `count` elements into the first lanes and set the others to 0; nothing else is read.

        stride: elements from one to the next, 1 where it is None.
        """
        if self._masked(kind, stride):
            return self.load_masked(kind, base, self.first_lanes(kind, count))
        if kind.lanes <= FEW_LANES:
            zero = self.module.table(self, f"zero.{kind.element.mangled}", kind.element, [0])
            value = self.poison(kind)
            for lane, address in enumerate(self._first_or(zero, kind, base, count, stride)):
                value = self.insert(value, self.load(kind.element, address), lane)
            return value
        room = self.room(kind)
        self.store(self.zero(kind), room)
        with self.loop("gather", 0, count) as at:
            self.store(self.load(kind.element, base, at if stride is None else at * stride), room, at)
        return self.load(kind, room)

    def load_masked(self, kind: Type, address: Value, mask: Value) -> Value:
        """Load the lanes that a mask names and set the others to 0; nothing else is read. For types that `has_masks`."""
        arguments = (address, self.const(I32, kind.align_bytes), mask, self.zero(kind))
        return self.call(f"llvm.masked.load.{kind.mangled}.p0", kind, *arguments)

    def store_first(self, value: Value, base: Value, count: Value, stride: Value | None = None) -> None:
        """Store the first `count` lanes; nothing else is written. stride: as for `load_first`."""
        kind = value.type
        if self._masked(kind, stride):
            arguments = (value, base, self.const(I32, kind.align_bytes), self.first_lanes(kind, count))
            self.call(f"llvm.masked.store.{kind.mangled}.p0", VOID, *arguments)
            return
        room = self.room(kind)
        if kind.lanes <= FEW_LANES:
            for lane, address in enumerate(self._first_or(room, kind, base, count, stride)):
                self.store(self.extract(value, lane), address)
            return
        self.store(value, room)
        with self.loop("scatter", 0, count) as at:
            self.store(self.load(kind.element, room, at), base, at if stride is None else at * stride)

    def _first_or(self, other: Value, kind: Type, base: Value, count: Value, stride: Value | None) -> Iterator[Value]:
        """Yield an address for each lane: of its element where it is one of the first `count`, else `other`."""
        for lane in range(kind.lanes):
            at = self.offset(base, lane if stride is None else stride * lane, kind)
            yield self.select(self.compare("gt", count, lane), at, other)

    def _masked(self, kind: Type, stride: Value | None) -> bool:
        """Whether a part of a vector is loaded or stored by one instruction with a mask."""
        return (stride is None or stride.known == 1) and self.has_masks(kind)

    def has_masks(self, kind: Type) -> bool:
        """Whether one instruction loads or stores the lanes of the type that a mask names."""
        return self.isa.masks or (self.isa.vector_bits == 256 and kind.bits >= 32)

    def room(self, kind: Type) -> Value:
        """Reserve memory for a vector on the stack, for as long as the function runs."""
        ref = f"%{self.fresh('room')}"
        self.reserved.append(f"  {ref} = alloca {kind.text}, align 64")
        return Value(self, PTR, ref)

    def prefetch(self, base: Value, index: Operand = 0, *, locality: int = 3, write: bool = False) -> None:
        """Prefetch a cache line. locality: from 3, keep it in the nearest cache, to 0, do not keep it."""
        address = self.offset(base, index)
        self.module.declare("llvm.prefetch.p0", VOID, (PTR, I32, I32, I32))
        self.emit(f"call void @llvm.prefetch.p0({address}, i32 {int(write)}, i32 {locality}, i32 1)")

    def load_shared(self, kind: Type, address: Value) -> Value:
        """Read a word that another thread may write meanwhile; it orders no other access."""
        return self.op(f"load atomic {kind.text}, {address} monotonic, align {kind.align_bytes}", kind, "load")

    def fetch_add(self, address: Value, amount: Operand, kind: Type = I64) -> Value:
        """Add atomically and return the value before: threads take chunks of shared work with it."""
        return self.op(f"atomicrmw add {address}, {self.coerce(amount, kind)} monotonic", kind, "taken")

    # Control

    @contextmanager
    def loop(self, name: str, start: Operand, stop: Operand, step: int = 1) -> Iterator[Value]:
        """Run the body for start, start + step, … below stop."""
        with self.fold(name, start, stop, step, ()) as fold:
            yield fold.index

    @contextmanager
    def fold(
        self, name: str, start: Operand, stop: Operand, step: int, values: Sequence[Value], *, runs: bool = False
    ) -> Iterator[Fold]:
        """Emit a loop that carries values: the body replaces `fold.values`, which are the final ones after the block.

        Known bounds must give at least one turn, and a single turn makes no loop. Unknown bounds may give none, unless the caller
        knows better (`runs`).
        """
        first, last = self.coerce(start, I64), self.coerce(stop, I64)
        turns = None if first.known is None or last.known is None else -(-(last.known - first.known) // step)
        if turns is not None and turns < 1:
            raise EmitError(f"loop {name}: {first.known} to {last.known} by {step} never runs, emit nothing instead")
        if turns == 1:
            yield Fold(first, list(values))
            return
        head, end = self.fresh(name), self.fresh(f"{name}.end")
        before = self.block
        if turns is None and not runs:
            some = self.op(f"icmp slt {first}, {last.ref}", I1, f"{name}.runs")
            self.emit(f"br {some}, label %{head}, label %{end}")
        else:
            self.emit(f"br label %{head}")
        self.label(head)
        fold = Fold(Value(self, I64, f"%{head}.i"), [Value(self, v.type, f"%{head}.v{n}") for n, v in enumerate(values)])
        inside, patch = list(fold.values), len(self.lines)
        self.lines += [""] * (1 + len(inside))
        yield fold
        if len(fold.values) != len(inside):
            raise EmitError(f"loop {name}: carries {len(inside)} values, its body left {len(fold.values)}")
        following = self.op(f"add nsw {fold.index}, {step}", I64, f"{name}.next")
        goes_on = self.op(f"icmp slt {following}, {last.ref}", I1, f"{name}.more")
        latch = self.block
        self.emit(f"br {goes_on}, label %{head}, label %{end}")
        for n, (phi, init, update) in enumerate(
            zip((fold.index, *inside), (first, *values), (following, *fold.values), strict=True)
        ):
            self.coerce(update, phi.type)
            self.lines[patch + n] = f"  {phi.ref} = phi {phi.type.text} [ {init.ref}, %{before} ], [ {update.ref}, %{latch} ]"
        self.label(end)
        if turns is None and not runs:
            fold.values = [
                self.op(f"phi {v.type.text} [ {init.ref}, %{before} ], [ {v.ref}, %{latch} ]", v.type, name)
                for v, init in zip(fold.values, values, strict=True)
            ]

    @contextmanager
    def when(self, condition: Value, name: str = "when") -> Iterator[None]:
        """Run the body only if the condition holds."""
        body, end = self.fresh(name), self.fresh(f"{name}.end")
        self.emit(f"br {condition}, label %{body}, label %{end}")
        self.label(body)
        yield
        self.emit(f"br label %{end}")
        self.label(end)

    @contextmanager
    def either(self, condition: Value, name: str) -> Iterator[Callable[[], None]]:
        """Run the body up to the call of what it yields if the condition holds, and else what follows the call.

        Unlike with two conditions, no value that both need has to be kept in a register by the first for the second.
        """
        body, rest, end = self.fresh(name), self.fresh(f"{name}.else"), self.fresh(f"{name}.end")
        self.emit(f"br {condition}, label %{body}, label %{rest}")
        self.label(body)

        def otherwise() -> None:
            self.emit(f"br label %{end}")
            self.label(rest)

        yield otherwise
        self.emit(f"br label %{end}")
        self.label(end)

    @contextmanager
    def repeat(self, name: str) -> Iterator[Callable[[Value], None]]:
        """Run the body again and again; calling what it yields leaves the loop if the condition holds."""
        head, end = self.fresh(name), self.fresh(f"{name}.end")
        self.emit(f"br label %{head}")
        self.label(head)

        def leave_if(condition: Value) -> None:
            stay = self.fresh(f"{name}.stay")
            self.emit(f"br {condition}, label %{end}, label %{stay}")
            self.label(stay)

        yield leave_if
        self.emit(f"br label %{head}")
        self.label(end)

    def ret(self, value: Value) -> None:
        """Return a value: the last instruction of a function that has one."""
        self.emit(f"ret {self.coerce(value, self.returns)}")


def _pieces(lanes: int) -> Iterator[tuple[int, int]]:
    """Powers of two that make up `lanes`, the largest first, as (start, width)."""
    start = 0
    while start < lanes:
        width = 1 << ((lanes - start).bit_length() - 1)
        yield start, width
        start += width
