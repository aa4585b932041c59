"""Modules and kernels of a GPU, and the instructions that LLVM IR has no name for, as inline PTX.

Memory of the GPU ("global") is addressed by i64 values, memory that the threads of a block share by i32 values.

Source: PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kernels.cuda.ptx import TRIPLE
from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.types import F32, I1, I8, I16, I32, I64, PTR, VOID, Type
from kernels.native.target.isa import FMA, Isa, Unit

GPU = Isa("cuda", "nvptx64", 32, 255, "", (Unit("cuda", "fp32", FMA, 1),), False, (), TRIPLE, "", "")
_LETTERS = {I16: "h", I32: "r", I64: "l", F32: "f"}
_REGISTERS = {8: I16, 16: I16, 32: I32, 64: I64}  # by bits of an element: what it is loaded into


class GpuModule(Module):
    """One compilation unit of kernels."""

    __slots__ = ()

    @contextmanager
    def kernel(self, name: str, structure_bytes: int, threads: int, cluster: int = 1) -> Iterator[tuple[Function, Value]]:
        """Open a kernel that takes one structure by value; the body yields its builder and the structure's address.

        threads: of a block, exactly. cluster: blocks that run at once and read one another's shared memory.
        Bounding registers so that two blocks of 256 threads fit spills them, and made tiles of 128x128 slower by 1.05 to 1.3, in
        fp32 by 2.8 (H200, 2026-11-30).
        """
        k = Function(self)
        yield k, Value(k, PTR, "%structure")
        k.emit("ret void")
        head = f"define ptx_kernel void @{name}(ptr byval([{structure_bytes} x i8]) align 8 %structure)"
        attributes = f'"nvvm.maxntid"="{threads}"' + (f' "nvvm.cluster_dim"="{cluster}"' if cluster > 1 else "")
        self._bodies.append("\n".join((f"{head} {attributes} {{", "entry:", *k.lines, "}")))

    @property
    def text(self) -> str:
        """The IR of the whole unit."""
        shared = "@shared = external addrspace(3) global [0 x i8], align 1024"
        head = (f'target triple = "{TRIPLE}"', *sorted(self._declarations.values()), *self._tables.values(), shared, "")
        return "\n".join((*head, *self._bodies, ""))


def special(k: Function, register: str) -> Value:
    """Read a special register of 32 bits, such as "tid.x"."""
    return k.call(f"llvm.nvvm.read.ptx.sreg.{register}", I32)


def shared_base(k: Function) -> Value:
    """Return the address of the block's dynamic shared memory."""
    return k.op("ptrtoint ptr addrspace(3) @shared to i32", I32, "shared")


def assemble(k: Function, text: str, returns: Sequence[Type], arguments: Sequence[Value], *, pure: bool = False) -> list[Value]:
    """Emit PTX instructions. In `text`, $0 and so on are the results, then the arguments.

    pure: they depend on their arguments alone; others keep their order, and touch memory.
    """
    outputs = [f"=&{_LETTERS[kind]}" for kind in returns]
    constraints = ",".join([*outputs, *(_LETTERS[a.type] for a in arguments), *(() if pure else ("~{memory}",))])
    kind = "void" if not returns else returns[0].text if len(returns) == 1 else f"{{{', '.join(t.text for t in returns)}}}"
    passed = ", ".join(map(str, arguments))
    call = f'call {kind} asm {"" if pure else "sideeffect "}"{text}", "{constraints}"({passed})'
    if not returns:
        k.emit(call)
        return []
    whole = k.op(call, returns[0] if len(returns) == 1 else VOID, "asm")
    if len(returns) == 1:
        return [whole]
    return [k.op(f"extractvalue {kind} {whole.ref}, {n}", t, "part") for n, t in enumerate(returns)]


def word(k: Function, condition: Value) -> Value:
    """Return a condition as 0 or 1 of 32 bits, which `assemble` can take."""
    return k.convert("zext", condition, I32)


def meet(k: Function) -> None:
    """Wait until every thread of the block has come here; each then sees what the others wrote."""
    k.call("llvm.nvvm.barrier.cta.sync.aligned.all", VOID, k.const(I32, 0))


def meet_team(k: Function, team: Value, threads: int) -> None:
    """Wait until every thread of a team, whole warps of the block, has come here. team: its number, 14 at most."""
    assemble(k, f"barrier.sync.aligned $0, {threads};", (), (team + 1,))


def meet_cluster(k: Function) -> None:
    """Wait until every thread of the block's cluster has come here; each then sees what the others wrote to shared memory."""
    assemble(k, "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;", (), ())


def shared_of(k: Function, address: Value, block: int) -> Value:
    """Return the address of the same place in the shared memory of a block of the cluster, for `load_cluster_words`."""
    return assemble(k, f"mapa.shared::cluster.u32 $0, $1, {block};", (I32,), (address,), pure=True)[0]


def load_cluster_words(k: Function, address: Value, at: int) -> list[Value]:
    """Load 4 words of 32 bits from shared memory of the cluster, `at` bytes after an address."""
    return assemble(k, f"ld.shared::cluster.v4.b32 {{$0, $1, $2, $3}}, [$4+{at}];", [I32] * 4, (address,))


def prefetch(k: Function, address: Value, valid: Value) -> None:
    """Start to fetch 128 bytes of global memory into L2 where it is valid."""
    assemble(k, "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p prefetch.global.L2 [$0]; }", (), (address, word(k, valid)))


def start_next(k: Function) -> None:
    """Let the blocks of the next launch start as soon as there is room for them; they come as far as `await_previous`.

    Compute capability 9.0 and newer have this; for others `kernels.cuda.ptx` leaves it out.
    """
    assemble(k, "griddepcontrol.launch_dependents;", (), ())


def await_previous(k: Function) -> None:
    """Wait until the launches before this one have ended and what they wrote can be read. Left out as `start_next` is."""
    assemble(k, "griddepcontrol.wait;", (), ())


def copy_async(k: Function, to: Value, source: Value, n_bytes: int, valid: Value) -> None:
    """Start a copy of 4, 8 or 16 bytes, or 2 at once, from global to shared memory; zeros where it is not valid."""
    if n_bytes == 2:
        text = (
            "{ .reg .pred p; .reg .b16 v; setp.ne.b32 p, $2, 0; mov.b16 v, 0; @p ld.global.b16 v, [$1]; st.shared.b16 [$0], v; }"
        )
        assemble(k, text, (), (to, source, word(k, valid)))
        return
    length = k.select(valid, k.const(I32, n_bytes), k.const(I32, 0))
    way = "cg" if n_bytes == 16 else "ca"  # past L1, which only 16 bytes can
    assemble(k, f"cp.async.{way}.shared.global [$0], [$1], {n_bytes}, $2;", (), (to, source, length))


def commit_copies(k: Function) -> None:
    """Make one group of the copies that this thread started since the group before."""
    assemble(k, "cp.async.commit_group;", (), ())


def wait_for_copies(k: Function, pending: int) -> None:
    """Wait until no more than the last `pending` groups of copies of this thread are under way."""
    assemble(k, f"cp.async.wait_group {pending};", (), ())


def publish_copies(k: Function) -> None:
    """Let instructions that read shared memory by themselves see what this thread copied there, after the next `meet`."""
    assemble(k, "fence.proxy.async.shared::cta;", (), ())


def load_words(k: Function, address: Value, count: int, valid: Value, *, space: str = "global") -> list[Value]:
    """Load 1, 2 or 4 words of 32 bits, aligned as a whole, from global memory; zeros where it is not valid."""
    names = [f"${n}" for n in range(count)]
    vector = {1: "", 2: ".v2", 4: ".v4"}[count]
    clear = " ".join(f"mov.b32 {name}, 0;" for name in names)
    listed = names[0] if count == 1 else f"{{{', '.join(names)}}}"
    text = f"{{ .reg .pred p; setp.ne.b32 p, ${count + 1}, 0; {clear} @p ld.{space}{vector}.b32 {listed}, [${count}]; }}"
    return assemble(k, text, [I32] * count, (address, word(k, valid)))


def store_words(k: Function, address: Value, words: Sequence[Value], valid: Value) -> None:
    """Store 1, 2 or 4 words of 32 bits, aligned as a whole, to global memory where it is valid."""
    vector = {1: "", 2: ".v2", 4: ".v4"}[len(words)]
    names = [f"${n + 2}" for n in range(len(words))]
    listed = names[0] if len(words) == 1 else f"{{{', '.join(names)}}}"
    text = f"{{ .reg .pred p; setp.ne.b32 p, $1, 0; @p st.global{vector}.b32 [$0], {listed}; }}"
    assemble(k, text, (), (address, word(k, valid), *words))


def load_element(k: Function, address: Value, kind: Type, valid: Value) -> Value:
    """Load an element of 8, 16, 32 or 64 bits from global memory; zero bits where it is not valid."""
    register = _REGISTERS[kind.bits]
    clear = f"mov.b{register.bits} $0, 0;"
    text = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; {clear} @p ld.global.b{kind.bits} $0, [$1]; }}"
    bits = assemble(k, text, (register,), (address, word(k, valid)))[0]
    return k.convert("trunc", bits, I8) if kind.bits == 8 else k.convert("bitcast", bits, kind)


def store_element(k: Function, address: Value, value: Value, valid: Value) -> None:
    """Store an element of 8, 16, 32 or 64 bits to global memory where it is valid."""
    bits, register = value.type.bits, _REGISTERS[value.type.bits]
    held = k.convert("zext" if bits == 8 else "bitcast", value, register)
    text = f"{{ .reg .pred p; setp.ne.b32 p, $1, 0; @p st.global.b{bits} [$0], $2; }}"
    assemble(k, text, (), (address, word(k, valid), held))


def exchange(k: Function, value: Value, apart: int) -> Value:
    """Return the float32 of the thread whose number in the warp differs in the bits of `apart`. All threads come here."""
    bits = k.convert("bitcast", value, I32)
    arguments = (k.const(I32, -1), bits, k.const(I32, apart), k.const(I32, 31))
    return k.convert("bitcast", k.call("llvm.nvvm.shfl.sync.bfly.i32", I32, *arguments), F32)


def store_shared(k: Function, address: Value, word: Value) -> None:
    """Store a word of 32 bits to shared memory."""
    assemble(k, "st.shared.b32 [$0], $1;", (), (address, k.convert("bitcast", word, I32)))


def load_shared(k: Function, address: Value) -> Value:
    """Load a word of 32 bits from shared memory."""
    return assemble(k, "ld.shared.b32 $0, [$1];", (I32,), (address,))[0]


def load_shared_words(k: Function, address: Value, at: int) -> list[Value]:
    """Load 4 words of 32 bits from shared memory, `at` bytes after an address."""
    return assemble(k, f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{at}];", [I32] * 4, (address,))


def store_shared_words(k: Function, address: Value, words: Sequence[Value], at: int) -> None:
    """Store 4 words of 32 bits to shared memory, `at` bytes after an address."""
    assemble(k, f"st.shared.v4.b32 [$0+{at}], {{$1, $2, $3, $4}};", (), (address, *words))


def load_fragments(k: Function, address: Value, at: int, *, transposed: bool = False) -> list[Value]:
    """Load four matrices of 8 rows of 16 bytes from shared memory, as the tensor cores take them.

    Thread n of the warp gives the address of row n % 8 of matrix n / 8. Each thread gets a word of each matrix: word n % 4 of
    row n / 4; transposed, the elements 2·(n % 4) and the one after it of column n / 4, of 16 bits each.
    """
    way = ".trans" if transposed else ""
    return assemble(k, f"ldmatrix.sync.aligned.m8n8.x4{way}.shared.b16 {{$0, $1, $2, $3}}, [$4+{at}];", [I32] * 4, (address,))


def both(k: Function, a: Value, b: Value) -> Value:
    """Return whether both conditions hold."""
    return k.op(f"and i1 {a.ref}, {b.ref}", I1, "both")


def below(k: Function, a: Value, b: Value) -> Value:
    """Compare unsigned, so that a negative number is not below any size."""
    return k.op(f"icmp ult {a}, {b.ref}", I1, "below")
