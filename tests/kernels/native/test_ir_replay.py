"""The emitted code is that of the table `ir_replay.json`, and the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.native.target.isa import ISAS
from tests.kernels.native.ir_replay import REGENERATE, Replay, body, differences, digest, replay, stored, text
from tests.kernels.native.replay_kernels import binary


def test_code_is_what_the_table_says() -> None:
    found = differences(stored(), replay())
    assert not found, "\n".join(
        ["the emitted code is not that of tests/kernels/native/ir_replay.json:", *found, f"where that is meant: {REGENERATE}"]
    )


def test_table_is_written_as_it_is_kept() -> None:
    table = stored()
    assert text({name: {isa: table[name][isa] for isa in ISAS} for name in table}) == text(table)


def test_code_does_not_depend_on_the_hash_seed() -> None:
    here = [f"{found} {name}" for name, found in Replay(ISAS["avx2"]).hashes()]
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "tests.kernels.native.ir_replay", "--isa", "avx2"]
    folder = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == here


def test_two_kernels_of_one_name_are_noticed() -> None:
    isa = ISAS["avx2"]
    (add,), (sub,) = binary(isa, np.float32, "add"), binary(isa, np.float32, "sub")
    found = Replay(isa)
    assert found.kernel(add) == found.kernel(replace(add, emit=lambda: add.ir.replace(add.name, "other"), name="other"))
    with pytest.raises(ValueError, match="two kernels of this name have different code"):
        found.kernel(replace(sub, emit=lambda: sub.ir.replace(sub.name, add.name), name=add.name))


def test_names_and_remarks_do_not_count() -> None:
    one = 'source_filename = "a"\ndeclare void @f_2(ptr)\ndeclare void @f(ptr)\n  ; step f\n  call void @f(ptr %x)  ; twice\n'
    other = 'declare void @"g"(ptr)\ndeclare void @h(ptr)\n  call void @"g"(ptr %x)\n'
    assert body(one, {"f": "first", "f_2": "second"}) == body(other, {"g": "first", "h": "second"})
    assert digest(body(one, {"f": "first"})) != digest(body(one, {"f": "second"}))


def test_differences_name_entries_and_instruction_sets() -> None:
    old = {"same": {"sse": "0", "avx2": "0"}, "gone": {"sse": "0", "avx2": "0"}, "other": {"sse": "0", "avx2": "0"}}
    new = {"same": {"sse": "0", "avx2": "0"}, "new": {"sse": "0", "avx2": "0"}, "other": {"sse": "0", "avx2": "1", "neon": "0"}}
    assert differences(old, new) == [
        "appeared: new (every instruction set)",
        "changed: other (avx2)",
        "appeared: other (neon)",
        "vanished: gone (every instruction set)",
    ]
