from __future__ import annotations

import json

import pytest

from profiler.device.sheet import from_sheet, read_profile
from profiler.device.topology import Confinement
from profiler.errors import ProfileFormatError
from tests.profiler.devices import device

SHEET = {
    "sheet_version": 1,
    "vendor": "Acme",
    "model": "Board 3",
    "architecture": "aarch64",
    "isa": ["neon"],
    "physical_cores": 4,
    "memory_bytes": 8 << 30,
    "caches": [{"level": 1, "kind": "data", "nbytes": 32 << 10}, {"level": 2, "nbytes": 1 << 20, "shared_by": 4}],
    "peaks": [{"threads": 1, "ops_per_s": 20e9}],
    "bandwidths": [{"threads": 4, "bytes_per_s": 10e9}],
    "method": "data sheet, rev. 2",
}


def sheet(**changes) -> bytes:
    return json.dumps({**SHEET, **changes}).encode()


def test_every_number_of_a_sheet_says_where_it_comes_from():
    found = read_profile(sheet())
    assert {figure.source for figure in found.figures} == {"entered", "derived"}
    entered = [figure for figure in found.figures if figure.source == "entered"]
    assert {(figure.value, figure.method) for figure in entered} == {(20e9, "data sheet, rev. 2"), (10e9, "data sheet, rev. 2")}
    assert all(figure.method for figure in found.figures)


def test_what_a_plan_asks_is_there():
    found = read_profile(sheet())
    assert found.peak_ops_per_s("fp32", 1) == 20e9
    assert found.peak_ops_per_s("fp32", 4) == 80e9
    assert found.peak_ops_per_s("fp32", 4, "gemm") == pytest.approx(68e9)
    assert found.bandwidth_bytes_per_s("DRAM", 1) == found.bandwidth_bytes_per_s("DRAM", 4) == 10e9
    assert found.bandwidth_bytes_per_s("L2", 1) > found.bandwidth_bytes_per_s("DRAM", 1)
    assert (found.level_of(1 << 10), found.level_of(1 << 19), found.level_of(1 << 30)) == ("L1", "L2", "DRAM")
    assert (found.usable_cores, found.memory_limit_bytes) == (4, 8 << 30)


def test_an_entered_cache_rate_is_not_derived_again():
    rates = [{"threads": 4, "bytes_per_s": 10e9}, {"level": "L2", "threads": 1, "bytes_per_s": 99e9}]
    assert read_profile(sheet(bandwidths=rates)).bandwidth_bytes_per_s("L2", 1) == 99e9


def test_a_sheet_becomes_a_profile_that_reads_back_equal():
    found = read_profile(sheet())
    assert read_profile(found.to_json().encode()) == found
    assert read_profile(sheet()).fingerprint == found.fingerprint
    assert read_profile(sheet(model="Board 4")).fingerprint != found.fingerprint
    assert read_profile(device().to_json().encode()) == device()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peaks": []}, "peaks"),
        ({"peaks": [{"threads": 1, "ops_per_s": -1}]}, "ops_per_s"),
        ({"peaks": [{"threads": 1, "ops_per_s": 1e9, "precision": "int8"}]}, "no fp32 peak"),
        ({"bandwidths": [{"threads": 1, "bytes_per_s": 1e9, "level": "L1"}]}, "no DRAM bandwidth"),
        ({"bandwidths": [{"threads": 1, "bytes_per_s": 1e9, "level": "disk"}]}, "level"),
        ({"physical_cores": 10**9}, "physical_cores"),
        ({"logical_cores": 2}, "need at least physical_cores 4"),
        ({"extra": 1}, "extra"),
        ({"sheet_version": 2}, "sheet_version"),
        ({"method": ""}, "method"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_sheet_that_breaks_a_rule_is_refused(changes, says):
    with pytest.raises(ProfileFormatError, match=says):
        read_profile(sheet(**changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b"{}"])
def test_what_is_neither_sheet_nor_profile_is_refused(text):
    with pytest.raises(ProfileFormatError):
        read_profile(text)


def test_entered_numbers_are_measured_when_the_machine_is_here():
    assert "not all measured" in from_sheet_of(physical_cores=4).outdated(Confinement(affinity=4))


def from_sheet_of(**changes):
    from profiler.device.sheet import Sheet

    return from_sheet(Sheet.model_validate({**SHEET, **changes}))
