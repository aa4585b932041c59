import pytest

from kernels import log
from kernels.errors import InvalidError
from kernels.native.code import dump
from kernels.native.code.cache import Source
from kernels.native.code.farm import compile_all
from kernels.native.run.runtime import runtime_ir
from kernels.native.target.isa import ISAS, host_isa

ISA = ISAS["avx2"]
IR = runtime_ir(ISA)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(dump, "_written", set())
    monkeypatch.setenv("EDGEWISE_DEBUG_DIR", str(tmp_path / "dump"))
    log._make_folder.cache_clear()
    yield tmp_path / "dump"
    log._make_folder.cache_clear()


@pytest.mark.parametrize(("level", "kinds"), [("2", []), ("3", ["ll"]), ("4", ["ll", "s"])])
def test_level_decides_what_is_written(monkeypatch, folder, level, kinds):
    monkeypatch.setenv("EDGEWISE_DEBUG", level)
    dump.dump_modules([Source.of_kernel("f32_a__avx2_0", lambda: IR)], ISA)
    files = {path.name: path.read_text() for path in folder.glob("*")}
    assert sorted(files) == [f"f32_a__avx2_0.{kind}" for kind in kinds]
    assert files.get("f32_a__avx2_0.ll", IR) == IR
    assert ".text" in files.get("f32_a__avx2_0.s", ".text")


def test_a_module_is_made_and_written_once(monkeypatch, folder):
    monkeypatch.setenv("EDGEWISE_DEBUG", "3")
    made = []
    source = Source.of_kernel("f32_a__avx2_0", lambda: made.append(1) or IR)
    for _ in range(3):
        dump.dump_modules([source], ISA)
    assert made == [1]


def test_compiling_writes_what_it_compiles(monkeypatch, folder):
    monkeypatch.setenv("EDGEWISE_DEBUG", "3")
    source = Source.of(runtime_ir(host_isa()))
    compile_all([source], host_isa())
    assert [path.name for path in folder.iterdir()] == [f"{source.name}.ll"]
    assert source.name.startswith("module_")


def test_folder_that_cannot_be_written_to_is_refused(monkeypatch, folder):
    monkeypatch.setenv("EDGEWISE_DEBUG", "3")
    (folder / "f32_a__avx2_0.ll").mkdir(parents=True)
    with pytest.raises(InvalidError, match=r"EDGEWISE_DEBUG_DIR: '.*f32_a__avx2_0.ll' cannot be written, Is a directory"):
        dump.dump_modules([Source.of_kernel("f32_a__avx2_0", lambda: IR)], ISA)
