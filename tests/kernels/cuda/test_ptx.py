import shutil
import subprocess

import pytest

from kernels.cuda import probe_kernels, ptx
from kernels.cuda.errors import GpuUnsupportedError
from kernels.cuda.ptx import TARGETS, PtxTarget, compile_ptx, entry_key, find_target, generate
from kernels.native.code.cache import CodeCache, Source
from kernels.native.errors import CompileError
from tests.kernels.cuda.kernels import SCALE

AMPERE, HOPPER = TARGETS[8, 0], TARGETS[9, 0]
MODULES = {
    "empty": (lambda: probe_kernels.EMPTY, "ret;"),
    "fma": (probe_kernels.fma_f32, "fma.rn.f32"),
    "memory": (probe_kernels.stream_memory, "ld.global.cg.v4.b32"),
    "fence": (lambda: probe_kernels.barriers("fence"), "fence.acq_rel.gpu"),
    "release": (lambda: probe_kernels.barriers("release"), "red.release.gpu.global.add.u32"),
    "step": (probe_kernels.step, "st.global"),
    **{
        f"mma_{name}": (lambda products=products: probe_kernels.mma_sync(products), f"mma.sync.aligned.m16n8k{products.depth}")
        for name, products in probe_kernels.PRODUCTS.items()
    },
}
WGMMA = {
    f"wgmma_{name}": (
        lambda products=products: probe_kernels.wgmma(products),
        f"wgmma.mma_async.sync.aligned.m64n256k{products.depth}",
    )
    for name, products in probe_kernels.PRODUCTS.items()
}
CASES = [(name, target) for target in (AMPERE, HOPPER) for name in MODULES] + [(name, HOPPER) for name in WGMMA]
IDS = [f"{name}-{target.cpu}" for name, target in CASES]


@pytest.mark.parametrize(("name", "target"), CASES, ids=IDS)
def test_kernels_of_the_probe_compile(name, target):
    text, instruction = {**MODULES, **WGMMA}[name]
    found = generate(text(), target).decode()
    assert f".target {target.cpu}" in found
    assert f".version {target.version // 10}.{target.version % 10}" in found
    assert instruction in found


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs ptxas, NVIDIA's assembler, which only a CUDA toolkit has")
@pytest.mark.parametrize(("name", "target"), CASES, ids=IDS)
def test_kernels_of_the_probe_assemble_without_spills(name, target, tmp_path):
    path = tmp_path / "module.ptx"
    path.write_bytes(generate({**MODULES, **WGMMA}[name][0](), target))
    command = ["ptxas", "-v", f"-arch={target.cpu}", str(path), "-o", str(tmp_path / "module.cubin")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "0 bytes spill stores" in found.stderr
    assert "serialized" not in found.stderr, "wgmma instructions overlap"


def test_addition_before_which_others_must_see_what_was_written_has_its_fence():
    lines = [line.strip() for line in generate(probe_kernels.barriers("fence"), HOPPER).decode().splitlines()]
    at = next(n for n, line in enumerate(lines) if line.startswith(("atom.", "red.")))
    assert any(line.startswith("fence.acq_rel.gpu") for line in lines[at - 4 : at])


@pytest.mark.parametrize("order", ["acquire", "release", "acq_rel", "seq_cst"])
def test_atomic_whose_order_llvm_would_drop_is_refused(order):
    ir = f"""target triple = "nvptx64-nvidia-cuda"
define ptx_kernel void @f(ptr addrspace(1) %p) {{
  %old = atomicrmw add ptr addrspace(1) %p, i32 1 syncscope("device") {order}
  ret void
}}"""
    with pytest.raises(CompileError, match="whose order LLVM drops, need a monotonic one between fences"):
        generate(ir, HOPPER)
    assert b"atom" in generate(ir.replace(order, "monotonic"), HOPPER)


def test_ir_that_is_wrong_is_refused():
    with pytest.raises(CompileError, match="LLVM refuses it"):
        generate("define void @f() { ret i32 }", HOPPER)


@pytest.mark.parametrize(
    ("capability", "cpu"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((9, 0), "sm_90a"),
        ((9, 5), "sm_89"),
        ((10, 0), "sm_100"),
        ((12, 1), "sm_120"),
        ((13, 0), "sm_120"),
    ],
)
def test_target_is_its_own_or_an_older_one_that_runs_on_it(capability, cpu):
    assert find_target(capability).cpu == cpu


def test_gpus_before_ampere_are_refused():
    with pytest.raises(GpuUnsupportedError, match=r"compute capability 7\.5, need 8\.0 or newer"):
        find_target((7, 5))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.cpu)
def test_every_target_is_known_to_llvm(target):
    assert f".target {target.cpu}".encode() in generate(SCALE, target)


# The cache


@pytest.fixture
def cache(tmp_path):
    return CodeCache(tmp_path / "code")


def test_ptx_is_compiled_once_and_then_read(cache, monkeypatch):
    first = compile_ptx(Source.of(SCALE), HOPPER, cache)
    monkeypatch.setattr(ptx, "generate", lambda ir, target: pytest.fail("compiled again"))
    assert compile_ptx(Source.of(SCALE), HOPPER, CodeCache(cache.files.path)) == first


def test_known_kernel_is_not_even_emitted(cache):
    compile_ptx(Source.of_kernel("scale", lambda: SCALE), HOPPER, cache)
    compile_ptx(Source.of_kernel("scale", lambda: pytest.fail("emitted")), HOPPER, cache)


def test_damaged_entry_is_compiled_again(cache):
    first = compile_ptx(Source.of(SCALE), HOPPER, cache)
    (entry,) = cache.files.path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] + b"!")
    assert compile_ptx(Source.of(SCALE), HOPPER, cache) == first
    assert entry.read_bytes().endswith(first)


def test_folder_that_others_can_write_to_is_not_used(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    compile_ptx(Source.of(SCALE), HOPPER, CodeCache(folder))
    assert not list(folder.iterdir())


def test_key_depends_on_the_emitters_of_kernels_and_of_their_expressions(monkeypatch, tmp_path):
    names = {"/".join(path.parts[-3:]) for path in ptx.emitters()}
    assert names > {"cuda/families/product.py", "native/emit/expression.py", "native/emit/math.py", "cuda/emit/unit.py"}
    (tmp_path / "emitter.py").write_text("first")
    monkeypatch.setattr(ptx, "emitters", lambda: [tmp_path / "emitter.py"])
    before = ptx.build_key.__wrapped__()
    (tmp_path / "emitter.py").write_text("second")
    assert ptx.build_key.__wrapped__() != before


def test_key_depends_on_source_target_and_version():
    targets = [AMPERE, HOPPER, PtxTarget("sm_90a", 83)]
    keys = {entry_key(source, target) for source in (Source.of(SCALE), Source.of(SCALE + " ")) for target in targets}
    assert len(keys) == 6
