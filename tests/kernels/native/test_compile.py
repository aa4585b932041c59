import hashlib
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from kernels.native.code import compile as compiler
from kernels.native.code import farm
from kernels.native.code.cache import CodeCache, Compiled, Source, entry_key
from kernels.native.code.compile import assembly, generate, spilled_share
from kernels.native.code.elf import Image, read_object
from kernels.native.code.folder import FOLDER
from kernels.native.code.library import Library
from kernels.native.emit.builder import Module
from kernels.native.emit.types import F32, PTR
from kernels.native.errors import CompileError, EmitError
from kernels.native.target.host import host
from kernels.native.target.isa import ISAS, host_isa
from tests.kernels.native.conftest import Native


def adds(isa, amount, name="f"):
    module = Module(isa)
    with module.function(name, {"x": PTR}) as (k, x):
        k.store(k.load(F32, x) + amount, x)
    return module.text


def tile(isa, accumulators):
    """Return the IR of a loop that keeps that many vectors live."""
    module = Module(isa)
    with module.function("f", {"x": PTR, "y": PTR}) as (k, x, y):
        with k.fold("i", 0, 64, 1, [k.zero(k.f32)] * accumulators) as fold:
            b = k.load(k.f32, x, fold.index * isa.lanes)
            fold.values = [k.fma(k.broadcast(k.f32, y, fold.index * 64 + n), b, a) for n, a in enumerate(fold.values)]
        for n, value in enumerate(fold.values):
            k.store(value, x, n * isa.lanes)
    return module.text


@pytest.mark.parametrize("name", ["avx2", "avx512", "neon", "sse"])
def test_spills_are_seen_when_a_loop_holds_more_vectors_than_there_are(name):
    isa = ISAS[name]
    assert spilled_share(assembly(tile(isa, isa.vector_registers - 6), isa), isa) == 0
    assert spilled_share(assembly(tile(isa, isa.vector_registers + 8), isa), isa) > 0


def test_library_resolves_calls_between_objects():
    isa = host_isa()
    caller = Module(isa)
    caller.declare("inner", PTR, ())
    text = caller.text.replace("declare ptr @inner()", "declare void @inner(ptr)") + (
        "define void @f(ptr %x) {\n  call void @inner(ptr %x)\n  call void @inner(ptr %x)\n  ret void\n}\n"
    )
    library = Library([generate(text, isa).code, generate(adds(isa, 2.0, "inner"), isa).code], ["f"])
    x = np.zeros(1, np.float32)
    import ctypes

    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library.address("f"))(x.ctypes.data)
    assert x[0] == 4


def test_libraries_may_use_one_name_each():
    isa, x = host_isa(), np.zeros(1, np.float32)
    first, second = Native(adds(isa, 1.0), isa), Native(adds(isa, 10.0), isa)
    first(x)
    second(x)
    assert x[0] == 11


def test_closed_library_has_no_addresses():
    isa = host_isa()
    library = Library([generate(adds(isa, 1.0), isa).code], ["f"])
    library.close()
    with pytest.raises(CompileError, match="'f' is not exported"):
        library.address("f")


def test_closing_libraries_returns_their_memory():
    isa = host_isa()
    code = generate(adds(isa, 1.0), isa).code
    for _ in range(20):
        Library([code], ["f"]).close()
    before = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(200):
        Library([code], ["f"]).close()
    assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 20


@pytest.mark.parametrize("broken", [b"", b"\x7fELF", b"nonsense" * 100])
def test_broken_object_is_refused(broken):
    with pytest.raises(CompileError, match="not a complete ELF object"):
        Library([broken], ["f"])


def test_missing_symbol_is_refused():
    isa = host_isa()
    with pytest.raises(CompileError, match="g is in none of its 1 objects"):
        Library([generate(adds(isa, 1.0), isa).code], ["g"])


# The cache


@pytest.fixture
def cache(tmp_path):
    return CodeCache(tmp_path / "code")


KEY = hashlib.sha256(b"key").digest()


def test_cache_returns_what_was_put(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, Compiled(b"code", 0.25))
    assert cache.get(KEY) == Compiled(b"code", 0.25)
    cache.put(KEY, Compiled(b"other"))
    assert cache.get(KEY) == Compiled(b"other", None)


def test_cache_folder_and_entries_are_private(cache):
    cache.put(KEY, Compiled(b"code"))
    (entry,) = cache.files.path.iterdir()
    assert cache.files.path.stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "spills", "foreign", "empty", "longer"])
def test_cache_ignores_a_damaged_entry_and_heals_it(cache, damage):
    cache.put(KEY, Compiled(b"code" * 100))
    (entry,) = cache.files.path.iterdir()
    data = entry.read_bytes()
    if damage == "foreign":
        other = hashlib.sha256(b"other").digest()
        cache.put(other, Compiled(b"code of another key"))
        data = (cache.files.path / f"{other.hex()}.o").read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    spills = data.replace(struct.pack("<d", -1), struct.pack("<d", 0.5))
    damaged = {"truncated": data[:-9], "flipped": flipped, "spills": spills, "foreign": data, "empty": b"", "longer": data + b"x"}
    entry.write_bytes(damaged[damage])
    with capture_logs() as logs:
        assert cache.get(KEY) is None
    assert [line["event"] for line in logs] == ["code cache entry is damaged, compiling it again"]
    cache.put(KEY, Compiled(b"new"))
    assert cache.get(KEY) == Compiled(b"new")


def test_cache_drops_the_least_recently_used(tmp_path):
    cache = CodeCache(tmp_path / "code", limit_bytes=4000)
    keys = [hashlib.sha256(bytes([n])).digest() for n in range(4)]
    for n, key in enumerate(keys[:3]):
        cache.put(key, Compiled(bytes(1000)))
        os.utime(cache.files.path / f"{key.hex()}.o", (n, n))
    assert cache.get(keys[0])  # used now: key 1 is the oldest
    cache.put(keys[3], Compiled(bytes(1000)))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]


def test_cache_survives_a_folder_that_vanishes(cache):
    cache.files.path.rmdir()
    cache.put(KEY, Compiled(b"code"))
    assert cache.get(KEY) is None


def test_entry_key_depends_on_code_and_isa():
    avx2, avx512 = ISAS["avx2"], ISAS["avx512"]
    assert len({entry_key(Source.of("a"), avx2), entry_key(Source.of("b"), avx2), entry_key(Source.of("a"), avx512)}) == 3


# Compiling many


def test_compile_all_keeps_order_and_compiles_doubles_once(cache, monkeypatch):
    isa, compiled = host_isa(), []
    monkeypatch.setattr(farm, "generate", lambda ir, *rest, **named: compiled.append(ir) or generate(ir, *rest, **named))
    texts = [adds(isa, 1.0), adds(isa, 2.0), adds(isa, 1.0)]
    first = farm.compile_all([*map(Source.of, texts)], isa, cache=cache)
    assert len(compiled) == 2
    assert first[0] == first[2] != first[1]
    assert farm.compile_all([*map(Source.of, texts)], isa, cache=cache) == first
    assert len(compiled) == 2


def test_compile_all_looks_again_when_spills_were_not_counted(cache):
    isa = host_isa()
    text = adds(isa, 1.0)
    assert farm.compile_all([Source.of(text)], isa, cache=cache)[0].spills is None
    assert farm.compile_all([Source.of(text)], isa, cache=cache, count_spills=True)[0].spills == 0
    assert farm.compile_all([Source.of(text)], isa, cache=cache)[0].spills == 0


def test_a_pace_ends_a_batch_and_what_was_compiled_is_kept(cache, monkeypatch):
    isa, compiled, asked = host_isa(), [], []
    monkeypatch.setattr(farm, "generate", lambda ir, *rest, **named: compiled.append(ir) or generate(ir, *rest, **named))

    def two_fit(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) <= 2

    sources = [*map(Source.of, (adds(isa, float(n)) for n in range(4)))]
    first = farm.compile_some(sources, isa, farm.Pace(two_fit), cache=cache)
    assert (sum(found is None for found in first), len(compiled)) == (2, 2)
    second = farm.compile_some(sources, isa, farm.Pace(lambda _: True), cache=cache)
    assert (None in second, len(compiled)) == (False, 4)


def test_a_pace_goes_by_what_compiling_took():
    asked = []
    pace = farm.Pace(lambda seconds: asked.append(seconds) or True)
    pace.allows(1000)
    pace.took(1000, 3.0)
    pace.took(3000, 5.0)
    pace.allows(500)
    assert 0 < asked[0] < 1
    assert asked[1] == pytest.approx(1.0)


def test_compile_all_on_threads_gives_the_same_code():
    isa = host_isa()
    texts = [adds(isa, float(n)) for n in range(20)]
    assert farm.compile_all([*map(Source.of, texts)], isa, threads=4, count_spills=True) == [
        generate(t, isa, count_spills=True) for t in texts
    ]


def test_threads_generate_code_side_by_side(monkeypatch):
    """Each waits in the code generator for the other one, which llvmlite's lock would keep out."""
    isa, generator, both = host_isa(), compiler._generator(), threading.Barrier(2)

    def meeting(*arguments):
        both.wait(timeout=60)
        return generator(*arguments)

    monkeypatch.setattr(compiler, "_generator", lambda: meeting)
    assert len(farm.compile_all([Source.of(adds(isa, 1.0)), Source.of(adds(isa, 2.0))], isa, threads=2)) == 2


def test_modules_are_compiled_while_others_are_emitted(monkeypatch):
    isa, compiled = host_isa(), threading.Event()
    monkeypatch.setattr(farm, "generate", lambda ir, isa, *, count_spills: compiled.set() or Compiled(ir.encode()))

    def second():
        assert compiled.wait(60), "the first module is compiled only once the second is emitted"
        return "second"

    found = farm.compile_all([Source("1", lambda: "first"), Source("2", second)], isa, threads=2)
    assert found == [Compiled(b"first"), Compiled(b"second")]


@pytest.mark.parametrize("threads", [1, 3])
def test_compile_all_reports_what_llvm_refuses(threads):
    good = [Source.of(adds(host_isa(), float(n))) for n in range(4)]
    with pytest.raises(CompileError, match="LLVM refuses"):
        farm.compile_all([*good, Source.of("nonsense"), Source.of("define")], host_isa(), threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_compile_all_reports_what_an_emitter_refuses(threads):
    def refuse():
        raise EmitError("no such tile")

    good = [Source.of(adds(host_isa(), float(n))) for n in range(4)]
    with pytest.raises(EmitError, match="no such tile"):
        farm.compile_all([*good, Source.of_kernel("bad", refuse)], host_isa(), threads=threads)


# Linking, and what is known without LLVM


def test_object_with_any_byte_changed_links_or_is_refused():
    """A broken object is never read beyond its end: it links to something, or says why not."""
    code = generate(adds(host_isa(), 1.5), host_isa()).code
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(code), 300):
        broken = bytearray(code)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            image = Image([read_object(bytes(broken))], lambda _: 4096)
            if image.nbytes < 1 << 20:
                image.write(np.zeros(image.nbytes, np.uint8), 1 << 40)
        except CompileError:
            refused += 1
    assert refused


@pytest.mark.parametrize("cut", [64, 200, 400])
def test_truncated_object_is_refused(cut):
    code = generate(adds(host_isa(), 1.5), host_isa()).code
    with pytest.raises(CompileError, match="not a complete ELF object"):
        read_object(code[:-cut])


def test_name_in_two_objects_is_refused():
    code = generate(adds(host_isa(), 1.0), host_isa()).code
    with pytest.raises(CompileError, match="'f' is defined twice"):
        Library([code, code], ["f"])


def test_name_in_no_object_is_refused():
    isa = host_isa()
    text = f'target triple = "{isa.triple}"\ndeclare void @system()\ndefine void @f() {{\n  call void @system()\n  ret void\n}}\n'
    with pytest.raises(CompileError, match="'system' is defined nowhere"):
        Library([generate(text, isa).code], ["f"])


def test_second_process_runs_without_llvm(tmp_path):
    """What costs 70 MB: a process whose code is in the cache must not load it."""
    script = tmp_path / "user.py"
    script.write_text(
        "import sys, numpy as np\nfrom kernels.native.run.thread_pool import ThreadPool\n"
        "team = ThreadPool(2)\nteam.close()\nprint(sorted(m for m in sys.modules if m.startswith('llvmlite.binding')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(farm.__file__).parents[3]), FOLDER: str(tmp_path / "code")}
    first, second = (
        subprocess.run([sys.executable, str(script)], check=True, env=environment, capture_output=True, text=True).stdout
        for _ in range(2)
    )
    assert "llvmlite.binding" in first
    assert second == "[]\n"


def test_damaged_memory_of_the_host_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "code"))
    known = host.__wrapped__()
    (entry,) = (tmp_path / "code").iterdir()
    for damage in (b"", b"[]", b'{"arch": 1, "cpu": "x", "features": []}', entry.read_bytes()[:-3]):
        entry.write_bytes(damage)
        assert host.__wrapped__() == known
