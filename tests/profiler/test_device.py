from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.native.target.isa import host_isas
from profiler.device.probe.bandwidth import PATTERNS
from profiler.device.probe.overheads import _throttled
from profiler.device.profile import DeviceProfile, probe, thread_counts
from profiler.device.topology import Confinement
from profiler.errors import MeasurementError, ProfileFormatError
from tests.machines import tree
from tests.profiler.devices import device, figure, hardware


@pytest.fixture(scope="module")
def probed() -> DeviceProfile:
    return probe(seconds=0.3)


def test_probe_measures_every_level_pattern_and_thread_count(probed):
    counts = thread_counts(probed.usable_cores)
    levels = {"DRAM"} | {f"L{c.level}" for c in probed.hardware.caches if c.kind != "instruction"}
    measured = {(b.level, b.pattern, b.threads) for b in probed.bandwidths}
    assert {(level, pattern, 1) for level in levels for pattern in PATTERNS} <= measured
    assert {("DRAM", "triad", n) for n in counts} <= measured
    assert {(p.precision, p.threads) for p in probed.peaks if p.kind == "instruction"} >= {("fp32", n) for n in counts}


def test_probe_gives_every_number_its_provenance(probed):
    figures = [p.rate for p in probed.peaks] + [b.rate for b in probed.bandwidths] + list(dict(probed.overheads).values())
    for measured in figures:
        assert measured.value > 0
        assert measured.method
        assert measured.repeats >= 1
        assert measured.measured_at.tzinfo is not None
    assert len({b.rate.method for b in probed.bandwidths}) == len(probed.bandwidths)


def test_probe_units_follow_what_was_measured(probed):
    assert {p.rate.unit for p in probed.peaks if p.precision == "int8"} <= {"OP/s"}
    assert {p.rate.unit for p in probed.peaks if p.precision != "int8"} == {"FLOP/s"}
    assert {b.rate.unit for b in probed.bandwidths} == {"B/s"}


def test_probe_json_round_trip_is_equal(probed):
    assert DeviceProfile.from_json(probed.to_json()) == probed


def test_probe_reports_progress_to_the_end():
    seen = []
    probe(seconds=0.1, progress=lambda done, steps, what: seen.append((done, steps, what)))
    assert [done for done, _, _ in seen[:-1]] == list(range(len(seen) - 1))
    assert seen[-1] == (seen[0][1], seen[0][1], "done")


@pytest.mark.parametrize("seconds", [0, -1, 601, float("nan")])
def test_probe_seconds_out_of_range(seconds):
    with pytest.raises(MeasurementError, match=r"seconds is .*, need 0.1 … 600"):
        probe(seconds=seconds)


def test_fingerprint_ignores_everything_measured_or_limited():
    changed = device(
        peaks=(),
        bandwidths=(),
        confinement=Confinement(affinity=1, cgroup_cpus=0.5),
        conditions={**device().conditions.model_dump(), "governor": "powersave", "os_release": "Linux 7"},
    )
    assert changed.fingerprint == device().fingerprint


def test_fingerprint_survives_a_boot_that_reserves_other_memory():
    assert device(hardware=hardware(memory_bytes=16_400_000_000 - 30_000_000)).fingerprint == device().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"vendor": "Other"},
        {"model": "Other"},
        {"isa": ("avx2",)},
        {"physical_cores": 8},
        {"caches": ()},
        {"clusters": ()},
        {"memory_bytes": 32 << 30},
        {"system": "Darwin"},
        {"architecture": "aarch64"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_changes_with_the_hardware(change):
    assert device(hardware=hardware(**change)).fingerprint != device().fingerprint


def test_fingerprint_does_not_hang_on_the_order_of_features():
    assert device(hardware=hardware(isa=("fma", "avx512f", "avx2"))).fingerprint == device().fingerprint


def test_from_json_names_the_field_that_is_wrong():
    data = json.loads(device().to_json())
    data["peaks"][1]["threads"] = 0
    with pytest.raises(ProfileFormatError, match=r"device profile: .* \(peaks\.1\.threads\)"):
        DeviceProfile.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", b"\xff", '{"schema_version": 2}', device().to_json()[:-1] + ', "extra": 1}'], ids=range(6)
)
def test_from_json_refuses_what_is_no_profile(text):
    with pytest.raises(ProfileFormatError, match="device profile"):
        DeviceProfile.from_json(text)


def test_from_json_refuses_infinity():
    text = device().to_json().replace('"drift_percent":0.5', '"drift_percent":Infinity')
    with pytest.raises(ProfileFormatError, match="drift_percent"):
        DeviceProfile.from_json(text)


def test_peak_takes_the_best_isa():
    assert device().peak_ops_per_s("fp32", threads=4) == 400e9


def test_peak_of_gemm_is_apart():
    assert device().peak_ops_per_s("fp32", kind="gemm") == 80e9


def test_peak_between_measured_thread_counts_is_interpolated():
    assert device().peak_ops_per_s("fp32", threads=2) == pytest.approx(200e9)


def test_peak_beyond_the_largest_thread_count_is_the_largest():
    assert device().peak_ops_per_s("fp32", threads=64) == 400e9


def test_peak_never_measured_is_refused():
    with pytest.raises(MeasurementError, match="no instruction peak of bf16 was measured"):
        device().peak_ops_per_s("bf16")


def test_bandwidth_by_level_and_threads():
    assert device().bandwidth_bytes_per_s("L2") == 200e9
    assert device().bandwidth_bytes_per_s("DRAM", threads=3) == pytest.approx(20e9 + 20e9 * 2 / 3)


@pytest.mark.parametrize(
    ("nbytes", "threads", "level"),
    [(1, 1, "L1"), (32 << 10, 1, "L1"), (33 << 10, 1, "L2"), (33 << 10, 2, "L1"), (8 << 20, 1, "L3"), (9 << 20, 1, "DRAM"),
     (16 << 20, 4, "L3"), (17 << 20, 4, "DRAM"), (16 << 20, 2, "DRAM")],
)  # fmt: skip
def test_level_of_a_working_set(nbytes, threads, level):
    assert device().level_of(nbytes, threads) == level


def test_level_of_skips_a_level_that_so_many_threads_were_not_measured_in():
    bandwidths = tuple(b for b in device().bandwidths if (b.level, b.threads) != ("L3", 4))
    assert device(bandwidths=bandwidths).level_of(8 << 20, threads=1) == "L3"
    assert device(bandwidths=bandwidths).level_of(8 << 20, threads=4) == "DRAM"


def test_transfer_takes_from_each_level_what_it_holds():
    l1, l2, l3 = 32 << 10, 1 << 20, 8 << 20
    found = device()
    assert found.least_transfer_ns(l1) == pytest.approx(l1 / 400)
    assert found.least_transfer_ns(l2) == pytest.approx(l1 / 400 + (l2 - l1) / 200)
    expected = l1 / 400 + (l2 - l1) / 200 + (l3 - l2) / 100 + 1000 / 20
    assert found.least_transfer_ns(l3 + 1000) == pytest.approx(expected)
    assert found.least_transfer_ns(0) == 0


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.sampled_from([1, 2, 4]))
def test_transfer_of_more_bytes_takes_no_less(a, b, threads):
    few, many = sorted((a, b))
    assert device().least_transfer_ns(few, threads) <= device().least_transfer_ns(many, threads)
    assert device().least_transfer_ns(many, threads) >= many / 1600  # no faster than L1


@pytest.mark.parametrize(
    ("confinement", "cores"),
    [
        (Confinement(affinity=8), 4),
        (Confinement(affinity=4), 2),
        (Confinement(affinity=1), 1),
        (Confinement(affinity=4, cores=4), 4),
        (Confinement(affinity=8, cores=64), 4),
        (Confinement(affinity=8, cgroup_cpus=2.5), 2),
        (Confinement(affinity=8, cgroup_cpus=0.2), 1),
        (Confinement(affinity=8, cgroup_cpus=100), 4),
    ],
)
def test_usable_cores_under_confinement(confinement, cores):
    assert device(confinement=confinement).usable_cores == cores


def test_throttling_is_that_of_the_process_own_cgroups(tmp_path):
    files = {"cpu.stat": "usage_usec 9", "a/cpu.stat": "nr_throttled 3", "a/b/cpu.stat": "nr_periods 9\nnr_throttled 4"}
    assert _throttled(tree(tmp_path, "0::/a/b", {**files, "other/cpu.stat": "nr_throttled 100"})) == 7
    assert _throttled(tmp_path / "nothing") is None


def test_memory_limit_is_the_cgroup_s():
    assert device(confinement=Confinement(affinity=8, cgroup_memory_bytes=1 << 30)).memory_limit_bytes == 1 << 30
    assert device().memory_limit_bytes == device().hardware.memory_bytes


@given(st.integers(1, 512))
def test_thread_counts_hold_one_and_all(cores):
    counts = thread_counts(cores)
    assert counts[0] == 1
    assert counts[-1] == cores
    assert list(counts) == sorted(set(counts))


def test_figure_refuses_a_negative_rate():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        figure(-1, "FLOP/s")


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        (Confinement(affinity=8), Confinement(affinity=8), ""),
        (Confinement(affinity=8), Confinement(affinity=2), ""),
        (Confinement(affinity=2), Confinement(affinity=8), "4 cores may be used, 1 were measured"),
        (Confinement(affinity=8, cgroup_cpus=2), Confinement(affinity=8), "4 cores may be used, 2 were measured"),
    ],
)
def test_a_profile_is_outdated_when_more_may_be_used_than_was_measured(then, now, says):
    assert device(confinement=then).outdated(now) == says


def test_probe_times_native_teams(probed):
    if not host_isas():
        assert probed.teams == ()
        return
    assert [team.threads for team in probed.teams] == list(thread_counts(probed.usable_cores))
    assert all(team.start.value > 0 and team.start.unit == team.barrier.unit == "ns" for team in probed.teams)
    assert {figure.source for figure in probed.figures} == {"measured"}


def test_profiles_of_earlier_versions_are_read():
    data = json.loads(device().to_json())
    del data["teams"]
    for peak in data["peaks"]:
        del peak["rate"]["source"]
    assert DeviceProfile.from_json(json.dumps(data)) == device()
