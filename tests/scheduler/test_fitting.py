"""The cost model starts from the roofline, is fitted to measurements, and states wide bounds for what it does not know."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from graph.native.work import Work
from scheduler.cost.bounds import UNCERTAINTY, Roofline, Rooflines
from scheduler.cost.evaluation import ALL, evaluate, spearman
from scheduler.cost.fitting import MIN_POINTS, CostModel, Point, cost_model, points_of
from scheduler.errors import RecordFormatError
from scheduler.store import Here, Store
from scheduler.workload import Workload
from tests.profiler.devices import device
from tests.scheduler.samples import BUILD, DEVICE, measurement

PLACE = device()
BOUNDS = Rooflines(PLACE)


def roofline(load: Workload) -> Roofline:
    return BOUNDS.of(load)


def load(rng: np.random.Generator, kind: str = "direct", threads: int | None = None) -> Workload:
    flops = math.exp(rng.uniform(math.log(1e6), math.log(1e9)))
    nbytes = int(math.exp(rng.uniform(math.log(1e4), math.log(4e6))))
    tile = (int(rng.integers(1, 15)), int(rng.integers(1, 5)))
    chunks = int(rng.integers(8, 90))
    work = Work(kind, flops, None, nbytes, nbytes // 2, nbytes // 4, 0, chunks, tile=tile)
    return Workload(work, threads or int(rng.choice([1, 2, 4])))


def truth(found: Workload) -> float:
    """Return the time in ns on a machine that differs from its roofline by tile and size."""
    pixels, vectors = found.work.tile[:2]
    loss = 1.25 + 0.3 / pixels + 0.1 / vectors + 0.02 * math.log(found.work.flops / 1e6)
    return roofline(found).ns * loss


def points(count: int, seed: int = 0, kind: str = "direct", noise: float = 0.01) -> list[Point]:
    """Return noisy measurements of `count` signatures with five candidates each."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        base = load(rng, kind)
        for tile in ((1, 4), (2, 3), (4, 3), (6, 2), (14, 1)):
            one = replace(base, work=replace(base.work, tile=tile, flops=base.work.flops * (1 + 0.3 / tile[0])))
            found.append(Point(one, truth(one) * (1 + noise * rng.standard_normal()), noise / 3, f"{kind}{n}"))
    return found


def test_without_measurements_the_roofline_stands_with_its_uncertainty():
    one = load(np.random.default_rng(0))
    (found,) = CostModel(PLACE).predict([one])
    assert found.ns == roofline(one).ns
    assert (found.low_ns, found.high_ns) == (found.ns / UNCERTAINTY, found.ns * UNCERTAINTY)
    assert not found.fitted


def test_the_roofline_is_the_larger_of_arithmetic_and_memory():
    work = Work("direct", 9e8, None, 0, 0, 0)
    assert roofline(Workload(work, 1)).compute_ns == pytest.approx(1e7)
    assert roofline(Workload(work, 1)).bound_by == "compute"
    assert roofline(Workload(Work("map", 1e3, None, 10**9, 10**9), 1)).bound_by == "memory"
    assert roofline(Workload(Work("map", 1e3), 1)).bound_by == "dispatch"


def test_chunks_that_do_not_divide_evenly_cost_and_conversions_too():
    even, odd = (roofline(Workload(Work("direct", 1e9, chunks=n), 4)).ns for n in (8, 9))
    assert odd > 1.2 * even
    work = Work("winograd", 1e6, None, 10**6, 10**6)
    assert roofline(Workload(work, 1, 2 * 10**6)).ns > roofline(Workload(work, 1)).ns


def test_held_out_work_is_predicted_and_ranked():
    found = {row.kind: row for row in evaluate(PLACE, points(40))}
    assert set(found) == {"direct", ALL}
    assert found["direct"].points == 200
    assert found["direct"].error_percent < 10
    assert found["direct"].spearman is not None
    assert found["direct"].spearman > 0.9
    assert found["direct"].fitted_percent == 100


def test_noise_lowers_the_ceiling_and_takes_pairs_out():
    found = {noise: evaluate(PLACE, points(40, noise=noise))[-1] for noise in (0.001, 0.2)}
    quiet, noisy = found.values()
    assert quiet.ceiling is not None
    assert noisy.ceiling is not None
    assert quiet.ceiling > 0.98 > noisy.ceiling
    assert quiet.pairs > noisy.pairs
    assert quiet.gamma is not None
    assert noisy.spearman is not None
    assert noisy.gamma is not None
    assert quiet.gamma > 0.95
    assert noisy.gamma > noisy.spearman


def test_pairs_within_a_tie_or_within_noise_are_in_no_order():
    loads = [point.load for point in points(1)[:3]]
    at = {"exact": (100.0, 100.5, 120.0), "noisy": (100.0, 150.0, 200.0)}
    noise = {"exact": 0.0, "noisy": 0.15}
    for name, times in at.items():
        (row, _) = evaluate(PLACE, [Point(load, ns, noise[name], name) for load, ns in zip(loads, times, strict=True)])
        assert row.pairs == {"exact": 2, "noisy": 1}[name]


def test_nine_in_ten_lie_between_the_bounds():
    model = CostModel.fitted(PLACE, points(40))
    unseen = points(30, seed=1)
    inside = [p.low_ns <= point.ns <= p.high_ns for point, p in zip(unseen, model.predict([u.load for u in unseen]), strict=True)]
    assert np.mean(inside) >= 0.85


def test_what_is_far_from_everything_seen_is_less_sure():
    model = CostModel.fitted(PLACE, points(30))
    near = points(30)[0].load
    far = replace(near, work=replace(near.work, flops=1e13, tile=(28, 6)))
    widths = [p.high_ns / p.low_ns for p in model.predict([near, far])]
    assert widths[1] > widths[0]


def test_few_measurements_make_no_fit_and_other_kinds_none_either():
    few = points(1)[: MIN_POINTS - 1]
    assert not CostModel.fitted(PLACE, few).fits
    model = CostModel.fitted(PLACE, points(10))
    assert not model.predict([load(np.random.default_rng(0), "winograd")])[0].fitted


def test_many_measurements_are_fitted_in_bounded_time():
    many = [point for kind in ("direct", "winograd", "product", "depthwise") for point in points(200, kind=kind)]
    CostModel.fitted(PLACE, many)
    began = time.process_time()
    CostModel.fitted(PLACE, many)
    assert time.process_time() - began < 10  # no measure of speed: it must not grow with the number of points


def test_the_same_points_make_the_same_model():
    one, other = (CostModel.fitted(PLACE, points(100)) for _ in range(2))
    asked = [point.load for point in points(5, seed=3)]
    assert one.predict(asked) == other.predict(asked)


def test_the_model_is_made_anew_when_there_are_newer_measurements(tmp_path):
    here = Here(DEVICE.fingerprint, BUILD)
    rows = [
        measurement(f"Conv(f32[{n}])", load=point.load.to_text(), p50_ns=point.ns, p90_ns=point.ns, std_ns=0.0)
        for n, point in enumerate(points(4))
    ]
    with Store(f"sqlite:///{tmp_path / 'fit.db'}") as store:
        store.devices.save(DEVICE)
        assert not cost_model(store, here, DEVICE).fits
        store.measurements.save(rows)
        first = cost_model(store, here, DEVICE)
        assert set(first.fits) == {"direct"}
        assert cost_model(store, here, DEVICE) is first
        store.measurements.save([measurement("Conv(f32[99])")])
        assert cost_model(store, here, DEVICE) is not first


def test_a_load_survives_its_text_and_bad_ones_are_refused_or_left_out():
    one = Workload(Work("winograd", 1.5e6, 10, 1, 2, 3, 4, 5, 3, (6, 2, 14, 4), "blocks", 1e-6), 2, 77)
    assert Workload.from_text(one.to_text()) == one
    for text in ("", "{}", '{"kind":"a","flops":-1,"threads":1}', '{"kind":"a","flops":1,"threads":1,"x":1}', "x" * 5000):
        with pytest.raises(RecordFormatError, match="load"):
            Workload.from_text(text)
    assert points_of([measurement(), measurement(load="{}")]) == []
    assert len(points_of([measurement(load=one.to_text())])) == 1


def test_spearman_is_the_correlation_of_ranks():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
