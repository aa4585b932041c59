import pytest

from kernels.native.errors import IsaError
from kernels.native.target.host import Host
from kernels.native.target.isa import GENERIC, ISAS, OVERRIDE, find_isa, host_isa, host_isas, isas_of


def test_host_isas_come_narrowest_first_and_the_widest_is_the_default(monkeypatch):
    monkeypatch.delenv(OVERRIDE, raising=False)
    widths = [isa.vector_bits for isa in host_isas()]
    assert widths == sorted(widths)
    assert host_isa() == host_isas()[-1]


def test_override_selects_a_narrower_set(monkeypatch):
    first = host_isas()[0]
    monkeypatch.setenv(OVERRIDE, first.name)
    assert host_isa() == first


def test_override_of_another_machine_is_refused(monkeypatch):
    runs = {isa.arch for isa in host_isas()}
    other = next(isa.name for isa in ISAS.values() if isa.arch not in runs)
    monkeypatch.setenv(OVERRIDE, other)
    with pytest.raises(IsaError, match=f"{other!r} was asked for, this machine runs"):
        host_isa()


def test_unknown_name_lists_the_known():
    with pytest.raises(IsaError, match=r"'avx1024' is unknown, need one of .*avx512"):
        find_isa("avx1024")


def test_no_fitting_set_names_the_way_out(monkeypatch):
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.setattr("kernels.native.target.isa.host", lambda: Host("x86_64", "old", ()))
    with pytest.raises(IsaError, match="the numpy backend serves it"):
        host_isa()


NARROW = [isa for isa in ISAS.values() if isa.arch == "x86_64" and isa.vector_bits < 512]


@pytest.mark.parametrize("isa", NARROW, ids=lambda isa: isa.name)
def test_narrower_set_keeps_its_width_and_features_on_a_wider_host(isa):
    assert "avx512" not in isa.features
    assert isa.cpu.startswith("x86-64-v")


@pytest.mark.parametrize("name", sorted(ISAS))
def test_lanes_follow_from_the_width(name):
    isa = ISAS[name]
    assert isa.lanes * 32 == isa.vector_bits
    assert isa.vector_registers in {16, 32}


def test_every_set_but_the_oldest_fuses_multiply_and_add():
    assert [isa.name for isa in ISAS.values() if not isa.fma] == ["sse"]
    assert GENERIC.fma


@pytest.mark.parametrize(
    ("isa", "unit", "macs"),
    [("sse", "sse2", 4), ("avx2", "avxvnni", 32), ("avx512_vnni", "avx512vnni", 64), ("avx512_bf16", "avx512bf16", 32),
     ("neon_dotprod", "neon-dotprod", 16), ("neon_i8mm", "neon-i8mm", 32), ("neon_i8mm", "neon-bf16", 16)],
)  # fmt: skip
def test_multiply_accumulates_of_one_instruction_by_hand(isa, unit, macs):
    assert ISAS[isa].macs(next(each for each in ISAS[isa].units if each.name == unit)) == macs


@pytest.mark.parametrize(
    ("arch", "names"),
    [("x86_64", ["sse", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"]), ("riscv64", ["generic"])],
)
def test_sets_of_an_architecture(arch, names):
    assert [isa.name for isa in isas_of(arch)] == names
