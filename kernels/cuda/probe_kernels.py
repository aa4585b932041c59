"""The kernels that the probe times, as LLVM IR.

Those that measure arithmetic take (out, clocks, turns): each thread stores a number that depends on all of its results to `out`,
so that none can be left out, and the first thread stores to `clocks` how many cycles and nanoseconds went by on its processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernels.record import record

HEAD = """target triple = "nvptx64-nvidia-cuda"
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.nctaid.x()
declare i64 @llvm.nvvm.read.ptx.sreg.clock64()
declare i64 @llvm.nvvm.read.ptx.sreg.globaltimer()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare float @llvm.fma.f32(float, float, float)
"""
_PLACE = """  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %block = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %threads = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %blocks = call i32 @llvm.nvvm.read.ptx.sreg.nctaid.x()
  %blockstart = mul i32 %block, %threads
  %thread = add i32 %blockstart, %tid
"""
_SYNC = "  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n"

EMPTY = f"{HEAD}define ptx_kernel void @empty(i32 %x) {{\n  ret void\n}}\n"

FMA_CHAINS, FMA_UNROLL = 16, 32
FMA_FLOPS = 2 * FMA_CHAINS * FMA_UNROLL  # of a thread in a turn


def _timed_loop(setup: str, state: Sequence[tuple[str, str]], body: str, results: Sequence[str], total: str) -> str:
    """Write a kernel that repeats `body` and times it.

    state: type and first value of what a turn hands on, `%s0` and so on inside.  results: what it hands on.  total: lines that
    compute `i32 %total` from `%s0` and so on after the last turn.
    """
    phis = "".join(
        f"  %s{n} = phi {kind} [{first}, %begin], [{result}, %loop]\n"
        for n, ((kind, first), result) in enumerate(zip(state, results, strict=True))
    )
    return (
        "define ptx_kernel void @peak(ptr addrspace(1) %out, ptr addrspace(1) %clocks, i32 %turns) {\nentry:\n"
        f"{_PLACE}{setup}  br label %begin\nbegin:\n"
        "  %cycle0 = call i64 @llvm.nvvm.read.ptx.sreg.clock64()\n  %time0 = call i64 @llvm.nvvm.read.ptx.sreg.globaltimer()\n"
        "  br label %loop\nloop:\n"
        f"  %turn = phi i32 [0, %begin], [%next, %loop]\n{phis}{body}"
        "  %next = add i32 %turn, 1\n  %more = icmp ult i32 %next, %turns\n  br i1 %more, label %loop, label %end\nend:\n"
        f"{_rename_results(results, total)}"
        "  %at = getelementptr i32, ptr addrspace(1) %out, i32 %thread\n  store i32 %total, ptr addrspace(1) %at\n"
        "  %cycle1 = call i64 @llvm.nvvm.read.ptx.sreg.clock64()\n  %time1 = call i64 @llvm.nvvm.read.ptx.sreg.globaltimer()\n"
        "  %first = icmp eq i32 %thread, 0\n  br i1 %first, label %note, label %out.\nnote:\n"
        "  %cycles = sub i64 %cycle1, %cycle0\n  %ns = sub i64 %time1, %time0\n  store i64 %cycles, ptr addrspace(1) %clocks\n"
        "  %second = getelementptr i64, ptr addrspace(1) %clocks, i32 1\n  store i64 %ns, ptr addrspace(1) %second\n"
        "  br label %out.\nout.:\n  ret void\n}\n"
    )


def _rename_results(results: Sequence[str], total: str) -> str:
    for n, result in reversed(list(enumerate(results))):
        total = total.replace(f"%s{n} ", f"{result} ").replace(f"%s{n},", f"{result},").replace(f"%s{n}\n", f"{result}\n")
    return total


def _sum(kind: str, n: int) -> str:
    """Add up `%s0` to `%s<n-1>` into `i32 %total`."""
    add = "fadd" if kind == "float" else "add"
    lines = [f"  %t1 = {add} {kind} %s0, %s1\n"]
    lines += [f"  %t{k} = {add} {kind} %t{k - 1}, %s{k}\n" for k in range(2, n)]
    lines.append(
        f"  %total = {'bitcast float' if kind == 'float' else 'add i32 0,'} %t{n - 1}{' to i32' if kind == 'float' else ''}\n"
    )
    return "".join(lines)


def fma_f32() -> str:
    """Chains of fp32 multiply-adds in registers."""
    setup = (
        "  %lane = uitofp i32 %tid to float\n"
        "  %a = call float @llvm.fma.f32(float %lane, float 0xBEB0C6F7A0000000, float 1.0)\n"
        "  %b = fmul float %lane, 0x3EB0C6F7A0000000\n"
    )
    setup += "".join(f"  %v{n} = fadd float %lane, {float(n)}\n" for n in range(FMA_CHAINS))
    body, last = "", [f"%s{n}" for n in range(FMA_CHAINS)]
    for step in range(FMA_UNROLL):
        for n in range(FMA_CHAINS):
            body += f"  %f{step}_{n} = call float @llvm.fma.f32(float {last[n]}, float %a, float %b)\n"
            last[n] = f"%f{step}_{n}"
    state = [("float", f"%v{n}") for n in range(FMA_CHAINS)]
    return HEAD + _timed_loop(setup, state, body, last, _sum("float", FMA_CHAINS))


@record
class Products:
    """An element type of the tensor cores.

    depth: elements of a row of the left operand that one instruction reads. kind: the instruction's types. clear, put: bits to
    clear and to set in 32 random bits so that each element is between 0.5 and 1 or -1 and -0.5. result: an accumulator's IR type.
    wgmma: what follows the operands of that instruction.
    """

    depth: int
    kind: str
    clear: int
    put: int
    result: str = "float"
    wgmma: str = ", 1, 1"


PRODUCTS = {
    "tf32": Products(8, "f32.tf32.tf32", 0x7F800000, 0x3F000000),
    "bf16": Products(16, "f32.bf16.bf16", 0x7F807F80, 0x3F003F00, wgmma=", 1, 1, 0, 0"),
    "fp16": Products(16, "f32.f16.f16", 0x7C007C00, 0x38003800, wgmma=", 1, 1, 0, 0"),
    "int8": Products(32, "s32.s8.s8", 0, 0, "i32", wgmma=""),
}
MMA_ROWS, MMA_COLUMNS = 16, 8
_MMA_A, _MMA_B, _MMA_UNROLL = 2, 4, 4  # a warp holds 2×4 results, as a tile of a matrix product does
MMA_STEPS = _MMA_A * _MMA_B * _MMA_UNROLL  # instructions of a warp in a turn


def _random(name: str, seed: str, salt: int, products: Products) -> str:
    """Hash a seed into 32 bits of random elements. The multipliers are those of MurmurHash3's finaliser."""
    lines = (
        f"0 = add i32 {seed}, {salt * 0x9E3779B1 % 2**31}",
        f"1 = mul i32 {name}.0, -2048144789",
        f"2 = lshr i32 {name}.1, 13",
        f"3 = xor i32 {name}.1, {name}.2",
        f"4 = mul i32 {name}.3, -1028477387",
        f"5 = lshr i32 {name}.4, 16",
        f"6 = xor i32 {name}.4, {name}.5",
        f"7 = and i32 {name}.6, {~products.clear & 0xFFFFFFFF}",
    )
    return "".join(f"  {name}.{line}\n" for line in lines) + f"  {name} = or i32 {name}.7, {products.put}\n"


def mma_sync(products: Products) -> str:
    """Matrix products of a warp by mma.sync, operands in registers: 2×4 results of 16×8."""
    setup = "".join(_random(f"%a{n}", "%thread", n, products) for n in range(4 * _MMA_A))
    setup += "".join(_random(f"%b{n}", "%thread", 100 + n, products) for n in range(2 * _MMA_B))
    kind, letter = products.result, "f" if products.result == "float" else "r"
    zero = "0.0" if kind == "float" else "0"
    text = f"mma.sync.aligned.m16n8k{products.depth}.row.col.{products.kind}.{'f32' if kind == 'float' else 's32'}"
    text += " {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$0,$1,$2,$3};"
    constraints = ",".join([f"={letter}"] * 4 + ["r"] * 6 + list("0123"))
    body, last = "", [f"%s{n}" for n in range(4 * _MMA_A * _MMA_B)]
    for step in range(_MMA_UNROLL):
        for a in range(_MMA_A):
            for b in range(_MMA_B):
                tile = 4 * (a * _MMA_B + b)
                name = f"%m{step}_{a}_{b}"
                operands = [f"i32 %a{4 * a + n}" for n in range(4)] + [f"i32 %b{2 * b + n}" for n in range(2)]
                operands += [f"{kind} {last[tile + n]}" for n in range(4)]
                four = "{" + ", ".join([kind] * 4) + "}"
                body += f'  {name} = call {four} asm "{text}", "{constraints}"({", ".join(operands)})\n'
                for n in range(4):
                    last[tile + n] = f"{name}.r{n}"
                    body += f"  {name}.r{n} = extractvalue {four} {name}, {n}\n"
    return HEAD + _timed_loop(setup, [(kind, zero)] * len(last), body, last, _sum(kind, len(last)))


def mma_work(products: Products, threads: int) -> int:
    """Return FLOPs or integer operations of a block in a turn of `mma_sync`."""
    return 2 * MMA_ROWS * MMA_COLUMNS * products.depth * MMA_STEPS * (threads // 32)


WGMMA_ROWS, WGMMA_COLUMNS, WGMMA_STEPS = 64, 256, 16  # of a warp group of 128 threads: a tile, and instructions in a turn
_WGMMA_A_BYTES, _WGMMA_B_BYTES = WGMMA_ROWS * 128, WGMMA_COLUMNS * 128  # rows of 128 bytes, read in 4 steps of 32


def wgmma_bytes(threads: int) -> int:
    """Return the dynamic shared memory of a block of `wgmma`: a left operand for each warp group, one right operand for all."""
    return threads // 128 * _WGMMA_A_BYTES + _WGMMA_B_BYTES


def wgmma_work(products: Products, threads: int) -> int:
    """Return FLOPs or integer operations of a block in a turn of `wgmma`."""
    return 2 * WGMMA_ROWS * WGMMA_COLUMNS * products.depth * WGMMA_STEPS * (threads // 128)


def wgmma(products: Products) -> str:
    """Matrix products of a warp group by wgmma, operands in shared memory: results of 64×256. Needs sm_90a.

    Shared memory is laid out in rows of 128 bytes whose 16-byte parts are swizzled; a descriptor gives the address, the 1024
    bytes from 8 rows to the next 8, and the swizzle (PTX ISA, "Matrix Descriptor Format" of wgmma).
    """
    kind, letter = products.result, "f" if products.result == "float" else "r"
    n_values = WGMMA_ROWS * WGMMA_COLUMNS // 128
    descriptor = (1 << 62) | (64 << 32) | (1 << 16)
    setup = (
        "  %total.bytes.g = lshr i32 %threads, 7\n"
        f"  %a.bytes = mul i32 %total.bytes.g, {_WGMMA_A_BYTES}\n  %all.bytes = add i32 %a.bytes, {_WGMMA_B_BYTES}\n"
        "  %mine = mul i32 %tid, 4\n  %stride = mul i32 %threads, 4\n  br label %fill\nfill:\n"
        "  %to = phi i32 [%mine, %entry], [%to1, %fill]\n  %seed = add i32 %to, %blockstart\n"
        f"{_random('%word', '%seed', 1, products)}"
        "  %place = getelementptr i8, ptr addrspace(3) @operands, i32 %to\n  store i32 %word, ptr addrspace(3) %place\n"
        "  %to1 = add i32 %to, %stride\n  %unfilled = icmp ult i32 %to1, %all.bytes\n"
        "  br i1 %unfilled, label %fill, label %filled\nfilled:\n"
        '  call void asm sideeffect "fence.proxy.async;", "~{memory}"()\n'
        f"{_SYNC}"
        "  %base = ptrtoint ptr addrspace(3) @operands to i64\n  %group = lshr i32 %tid, 7\n"
        f"  %a.at = mul i32 %group, {_WGMMA_A_BYTES}\n  %a.at64 = zext i32 %a.at to i64\n  %b.at64 = zext i32 %a.bytes to i64\n"
    )
    for side in "ab":
        setup += (
            f"  %{side}.address = add i64 %base, %{side}.at64\n  %{side}.low = and i64 %{side}.address, 262143\n"
            f"  %{side}.sixteenths = lshr i64 %{side}.low, 4\n  %{side}0 = or i64 %{side}.sixteenths, {descriptor}\n"
        )
        setup += "".join(f"  %{side}{n} = add i64 %{side}0, {2 * n}\n" for n in range(1, 4))
    values = "{" + ",".join(f"${n}" for n in range(n_values)) + "}"
    shape = f"m64n256k{products.depth}.{products.kind}"
    text = "{ .reg .pred on; setp.eq.b32 on, 0, 0; wgmma.fence.sync.aligned; "
    for step in range(WGMMA_STEPS):
        a, b = n_values + step % 4, n_values + 4 + step % 4
        text += f"wgmma.mma_async.sync.aligned.{shape} {values}, ${a}, ${b}, on{products.wgmma}; "
    text += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }"
    constraints = ",".join([f"={letter}"] * n_values + ["l"] * 8 + [str(n) for n in range(n_values)])
    operands = [f"i64 %{side}{n}" for side in "ab" for n in range(4)] + [f"{kind} %s{n}" for n in range(n_values)]
    struct = "{" + ", ".join([kind] * n_values) + "}"
    body = f'  %m = call {struct} asm sideeffect "{text}", "{constraints}"({", ".join(operands)})\n'
    body += "".join(f"  %m{n} = extractvalue {struct} %m, {n}\n" for n in range(n_values))
    zero = "0.0" if kind == "float" else "0"
    loop = _timed_loop(setup, [(kind, zero)] * n_values, body, [f"%m{n}" for n in range(n_values)], _sum(kind, n_values))
    return f"{HEAD}@operands = external addrspace(3) global [0 x i8], align 1024\n{loop}"


READ_UNROLL = 4  # loads of 16 bytes that a thread has in flight
_FOUR = "{i32, i32, i32, i32}"
_LOAD = f'call {_FOUR} asm sideeffect "ld.global.cg.v4.b32 {{$0,$1,$2,$3}}, [$4];", "=r,=r,=r,=r,l"'
_STORE = 'call void asm sideeffect "st.global.cg.v4.b32 [$0], {$1,$2,$3,$4};", "l,r,r,r,r"'


def stream_memory() -> str:
    """Kernels `read` and `copy` of (x, y, parts, passes): `parts` × 16 bytes, a multiple of READ_UNROLL × all threads.

    Loads bypass L1, and in every pass a block has another share of the data. `read` stores the exclusive or of everything that a
    thread has read to `y`.
    """
    return HEAD + _stream("read") + _stream("copy")


def _stream(name: str) -> str:
    loads = uses = ""
    last = "%seen"
    for n in range(READ_UNROLL):
        loads += f"  %i.{n} = add i64 {'%i' if n == 0 else f'%i.{n - 1}'}, {0 if n == 0 else '%step'}\n"
        loads += f"  %p{n} = getelementptr <4 x i32>, ptr addrspace(1) %x, i64 %i.{n}\n"
        loads += f"  %v{n} = {_LOAD}(ptr addrspace(1) %p{n})\n"
        uses += "".join(f"  %v{n}.{k} = extractvalue {_FOUR} %v{n}, {k}\n" for k in range(4))
        if name == "copy":
            uses += f"  %q{n} = getelementptr <4 x i32>, ptr addrspace(1) %y, i64 %i.{n}\n"
            uses += f"  {_STORE}(ptr addrspace(1) %q{n}, {', '.join(f'i32 %v{n}.{k}' for k in range(4))})\n"
            continue
        for k in range(4):
            uses += f"  %x{n}.{k} = xor i32 {last}, %v{n}.{k}\n"
            last = f"%x{n}.{k}"
    keep = "  %at = getelementptr i32, ptr addrspace(1) %y, i32 %thread\n  store i32 %seen.last, ptr addrspace(1) %at\n"
    return f"""define ptx_kernel void @{name}(ptr addrspace(1) %x, ptr addrspace(1) %y, i64 %parts, i32 %passes) {{
entry:
{_PLACE}  %step32 = mul i32 %threads, %blocks
  %step = zext i32 %step32 to i64
  %stride = mul i64 %step, {READ_UNROLL}
  br label %pass
pass:
  %p = phi i32 [0, %entry], [%p.next, %passed]
  %seen.p = phi i32 [0, %entry], [%seen.last, %passed]
  %turned = mul i32 %p, 37
  %moved = add i32 %block, %turned
  %share = urem i32 %moved, %blocks
  %share.at = mul i32 %share, %threads
  %share.mine = add i32 %share.at, %tid
  %first = zext i32 %share.mine to i64
  br label %loop
loop:
  %i = phi i64 [%first, %pass], [%i.next, %loop]
  %seen = phi i32 [%seen.p, %pass], [%seen.last, %loop]
{loads}{uses}  %seen.last = add i32 {last}, 0
  %i.next = add i64 %i, %stride
  %more = icmp ult i64 %i.next, %parts
  br i1 %more, label %loop, label %passed
passed:
  %p.next = add i32 %p, 1
  %again = icmp ult i32 %p.next, %passes
  br i1 %again, label %pass, label %end
end:
{keep if name == "read" else ""}  ret void
}}
"""


# Ways to let every thread of the grid wait until all have come to the same point, and see what the others wrote before it: the
# first thread of a block adds 1 to a counter and waits until it has reached all blocks × rounds. Each stands between two barriers
# of the block, knows `%round` (1, 2, ...) and the counter `%state`, and ends in the block `met`.
#
# Measured on an H200 with 132 blocks (2026-11-30), where "release" takes 0.95 µs, and left out: a flag for each block, which all
# others read, 1.65; two and four counters, 0.96 and 0.95.
BARRIERS = {
    "fence": """  %target = mul i32 %round, %blocks
  br i1 %leader, label %arrive, label %met
arrive:
  fence syncscope("device") acq_rel
  %old = atomicrmw add ptr addrspace(1) %state, i32 1 syncscope("device") monotonic
  br label %wait
wait:
  %count = load atomic i32, ptr addrspace(1) %state syncscope("device") monotonic, align 4
  %all = icmp uge i32 %count, %target
  br i1 %all, label %go, label %wait
go:
  fence syncscope("device") acq_rel
  br label %met
""",
    "release": """  %target = mul i32 %round, %blocks
  br i1 %leader, label %arrive, label %met
arrive:
  call void asm sideeffect "red.release.gpu.global.add.u32 [$0], 1;", "l,~{memory}"(ptr addrspace(1) %state)
  br label %wait
wait:
  %count = call i32 asm sideeffect "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l,~{memory}"(ptr addrspace(1) %state)
  %all = icmp uge i32 %count, %target
  br i1 %all, label %met, label %wait
""",
}
BARRIER_WAYS = {
    "fence": "fences around a relaxed addition to a counter",
    "release": "red.release on a counter, ld.acquire",
}


def barriers(kind: str) -> str:
    """Kernels `meet(state, rounds)`, which only waits for all blocks, and `steps(state, rounds, x, y)`, which works between."""
    return HEAD + _rounds(kind, "meet", "", "") + _rounds(kind, "steps", ", ptr addrspace(1) %x, ptr addrspace(1) %y", _STEP)


def step() -> str:
    """Kernel `step(x, y)`: what `steps` does between two barriers, as a launch of its own."""
    head = "define ptx_kernel void @step(ptr addrspace(1) %from, ptr addrspace(1) %to) {\nentry:\n"
    return f"{HEAD}{head}{_PLACE}{_NEIGHBOUR}{_MOVE}  ret void\n}}\n"


_NEIGHBOUR = """  %neighbour = add i32 %thread, %threads
  %n.threads = mul i32 %threads, %blocks
  %source = urem i32 %neighbour, %n.threads
"""
_MOVE = """  %from.at = getelementptr i32, ptr addrspace(1) %from, i32 %source
  %to.at = getelementptr i32, ptr addrspace(1) %to, i32 %thread
  %value = load i32, ptr addrspace(1) %from.at
  %value1 = add i32 %value, 1
  store i32 %value1, ptr addrspace(1) %to.at
"""
_STEP = f"""  %odd = and i32 %r, 1
  %is.odd = icmp eq i32 %odd, 1
  %from = select i1 %is.odd, ptr addrspace(1) %y, ptr addrspace(1) %x
  %to = select i1 %is.odd, ptr addrspace(1) %x, ptr addrspace(1) %y
{_MOVE}"""


def _rounds(kind: str, name: str, parameters: str, work: str) -> str:
    return f"""define ptx_kernel void @{name}(ptr addrspace(1) %state, i32 %rounds{parameters}) {{
entry:
{_PLACE}{_NEIGHBOUR}  %leader = icmp eq i32 %tid, 0
  br label %turn
turn:
  %r = phi i32 [0, %entry], [%round, %met]
  %round = add i32 %r, 1
{work}{_SYNC}{BARRIERS[kind]}met:
{_SYNC}  %done = icmp eq i32 %round, %rounds
  br i1 %done, label %out, label %turn
out:
  ret void
}}
"""
