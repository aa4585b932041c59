"""Compare the emitted code with a table of hashes, to show that a change of the source changes no code.

    python -m tests.kernels.native.ir_replay            print the differences from the table
    python -m tests.kernels.native.ir_replay --write    write the table again
    python -m tests.kernels.native.ir_replay --isa avx2    print the hashes of one instruction set, without the table

The table (`ir_replay.json`) has a line for each entry, with a hash for each described instruction set. It does not depend on
the machine that writes it. A kernel is hashed by its LLVM IR and by what a program must know of it: arguments, chunks, scratch
memory and numbers. The IR has a placeholder for the kernel's own name, since names may change where code does not. Of a
program, the calls are hashed, with kernels named by their hashes. A model has two entries: the calls to which it is lowered,
and the programs that place these calls in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kernels.native.emit.kernel import NativeKernel
from kernels.native.run.program import KernelCall
from kernels.native.run.runtime import runtime_ir
from kernels.native.run.walk import walk_ir
from kernels.native.target.isa import ISAS, Isa
from tests.kernels.native.replay_kernels import KERNELS, PROGRAMS
from tests.kernels.native.replay_models import MODELS, describe, segments

TABLE = Path(__file__).parent / "ir_replay.json"
REGENERATE = "python -m tests.kernels.native.ir_replay --write"
DIGITS = 12  # hexadecimal digits of a hash

Table = Mapping[str, Mapping[str, str]]  # entry -> instruction set -> hash

_NOT_CODE = re.compile(r"^\s*(;|source_filename\b)")  # comments and names of modules
_LATER_REMARK = re.compile(r'\s+;[^"]*$')


def body(ir: str, names: Mapping[str, str]) -> str:
    """Return the code of a module with functions renamed. Declarations are sorted, since their order depends on names.

    names: function -> its new name.
    """
    if names:
        known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        ir = re.sub(rf'@"?({known})(?![\w$-])"?', lambda found: f"@{names[found[1]]}", ir)
    lines = [_LATER_REMARK.sub("", line).rstrip() for line in ir.splitlines() if not _NOT_CODE.match(line)]
    declared = sorted({line for line in lines if line.startswith("declare ")})
    return "\n".join([*declared, *(line for line in lines if line and not line.startswith("declare "))])


def digest(*parts: str) -> str:
    """Return a short hash of the parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGITS]


class Replay:
    """The hashes of all entries for one instruction set. Every kernel is emitted, even if one of its name was hashed before."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self._by_name: dict[str, str] = {}
        self._by_identity: dict[int, tuple[NativeKernel, str]] = {}

    def hashes(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the hash of every entry."""
        for name, make in KERNELS.items():
            yield name, digest(*(self.kernel(kernel) for kernel in make(self.isa)))
        yield "runtime", digest(body(runtime_ir(self.isa), {}))
        yield "walker", digest(body(walk_ir(self.isa), {}))
        for name, compose in PROGRAMS.items():
            yield f"program: {name}", digest(*self.program(compose(self.isa)))
        for name in MODELS:
            laid = list(segments(name, self.isa))
            calls = ("\n".join(describe(each.calls, lambda call: self.kernel(call.kernel))) for each in laid)
            yield f"model: {name}, calls", digest(*calls)
            yield f"model: {name}, programs", digest(*(line for each in laid for line in self.program(each.steps)))

    def kernel(self, kernel: NativeKernel) -> str:
        """Return the hash of one kernel. Raises ValueError if a different kernel has its name: a code cache would mix them up."""
        if id(kernel) in self._by_identity:
            return self._by_identity[id(kernel)][1]
        of = (
            f"{kernel.chunks} chunks",
            f"{kernel.scratch_bytes} bytes of scratch",
            f"numbers {kernel.numbers}",
            *(f"{name} {table.words.tolist()}" for name, table in kernel.tables.items()),
        )
        facts = " | ".join((" ".join(kernel.arguments), *of))
        code = digest(body(kernel.ir, {kernel.name: "kernel"}))
        found = digest(facts, code)
        self._by_identity[id(kernel)] = kernel, found
        if self._by_name.setdefault(kernel.name, code) != code:
            raise ValueError(f"kernel {kernel.name}: two kernels of this name have different code")
        return found

    def program(self, steps: Sequence[KernelCall]) -> Iterator[str]:
        """Describe the calls of a program, its kernels named by their hashes."""
        for step in steps:
            places = " ".join(f"{name}={ref.slot}+{ref.offset_bytes}" for name, ref in sorted(step.refs.items()))
            yield f"{self.kernel(step.kernel)} {places} | grain {step.grain}{', barrier' * step.barrier}"


def replay() -> Table:
    """Return the hashes of the code that the source emits now."""
    table: dict[str, dict[str, str]] = {}
    for isa in ISAS.values():
        for name, found in Replay(isa).hashes():
            table.setdefault(name, {})[isa.name] = found
    return table


def differences(stored: Table, now: Table) -> list[str]:
    """Return a line for each entry whose code changed, appeared or vanished, with the instruction sets."""
    found = []
    for name in [*now, *(name for name in stored if name not in now)]:
        old, new = stored.get(name, {}), now.get(name, {})
        every = dict.fromkeys((*new, *old))
        kinds = {
            "changed": [isa for isa in every if isa in old and isa in new and old[isa] != new[isa]],
            "appeared": [isa for isa in every if isa not in old],
            "vanished": [isa for isa in every if isa not in new],
        }
        for kind, isas in kinds.items():
            if isas:
                on = "every instruction set" if len(isas) == len(every) else ", ".join(isas)
                found.append(f"{kind}: {name} ({on})")
    return found


def stored() -> Table:
    """Return the stored table."""
    table: Table = json.loads(TABLE.read_text())
    return table


def text(table: Table) -> str:
    """Return the table as JSON, with one line for each entry."""
    lines = [f"{json.dumps(name)}: {json.dumps(hashes)}" for name, hashes in table.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    """Print the hashes or the differences, and write the table if asked. Return 1 if it differs and is not written, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels.native.ir_replay", description="Compare the emitted code with a table of hashes."
    )
    parser.add_argument("--write", action="store_true", help="write the table again")
    parser.add_argument("--isa", choices=ISAS, help="print the hashes of this instruction set only")
    given = parser.parse_args()
    if given.isa:
        sys.stdout.writelines(f"{found} {name}\n" for name, found in Replay(ISAS[given.isa]).hashes())
        return 0
    now = replay()
    lines = differences(stored() if TABLE.exists() else {}, now)
    sys.stdout.write("\n".join([*lines, f"{len(lines)} differences in {len(now)} entries"]) + "\n")
    if given.write:
        TABLE.write_text(text(now))
    return 1 if lines and not given.write else 0


if __name__ == "__main__":
    sys.exit(main())
