"""What a device's measurements make of the roofline: a factor on it for every kind of kernel, with its uncertainty.

The logarithm of measured ÷ roofline is a Gaussian process over what the roofline is made of and how the kernel is cut up: a
constant and a linear part, which say how this kind of kernel differs from its roofline, and a smooth part for the rest. Without
measurements near, it goes back to the kind's own trend and says that it may be far off; without any, nothing is fitted, and the
roofline stands with `UNCERTAINTY`. Numpy alone, a bounded number of points.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from graph.run.blas import BlasThreads
from kernels.spec import Array
from profiler.device.profile import DeviceProfile
from scheduler.cost.bounds import UNCERTAINTY, Roofline, Rooflines, imbalance
from scheduler.errors import RecordFormatError
from scheduler.plan import BoundBy
from scheduler.store import Here, Measurement, Store
from scheduler.workload import Workload

MIN_POINTS: Final = 8  # of a kind: with fewer, it has no fit
MAX_POINTS: Final = 320  # of a kind; a solve takes about 5 ms
_TUNED_ON: Final = 128  # points that the length and height of the smooth part are chosen on
_TILE: Final = 4  # sizes of a tile that are looked at
_CONSTANT, _SLOPE = math.log(UNCERTAINTY) / 2, 0.3  # standard deviations of the constant, and of the trend for one deviation
_LENGTHS, _HEIGHTS = (0.4, 0.8, 1.6), (0.08, 0.2)  # of the smooth part, in deviations of the features and in log time
_NOISE = 0.02  # of a time at least: what neighbours in the model and the hour of the day do
_SIGMAS = 1.645  # of the bounds that are given: nine in ten lie between them
_OUTLIERS = 6.0  # median deviations from the median that a kind of kernel may spread
_MODELS = 8  # kept in memory


@dataclass(frozen=True, slots=True)
class Point:
    """A load that was measured. group: what it is held out with. noise: of its time, relative."""

    load: Workload
    ns: float
    noise: float
    group: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a load should take. fitted: whether measurements of its kind say so, or the roofline alone."""

    ns: float
    low_ns: float
    high_ns: float
    fitted: bool
    bound_by: BoundBy
    level: str


@dataclass(frozen=True, slots=True)
class _Fit:
    """The process of one kind. middle, scale: of the features. x: of the points. weights: K⁻¹·y. inverse: K⁻¹."""

    middle: Array
    scale: Array
    x: Array
    weights: Array
    inverse: Array
    length: float
    height: float

    def ask(self, features: Array) -> tuple[Array, Array]:
        """Means and standard deviations of the log ratio."""
        z = (features - self.middle) / self.scale
        cross = _kernel(z, self.x, self.length, self.height)
        prior = _CONSTANT**2 + _SLOPE**2 * np.mean(z * z, axis=1) + self.height**2
        return cross @ self.weights, np.sqrt(np.maximum(prior - np.sum((cross @ self.inverse) * cross, axis=1), 0) + _NOISE**2)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Predicts loads on one device. fits: by kind."""

    device: DeviceProfile
    fits: Mapping[str, _Fit] = field(default_factory=dict, repr=False)

    @staticmethod
    def fitted(device: DeviceProfile, points: Iterable[Point]) -> CostModel:
        """The model that these points make; kinds of fewer than MIN_POINTS stay without a fit."""
        kinds: dict[str, list[Point]] = {}
        for point in points:
            kinds.setdefault(point.load.work.kind, []).append(point)
        roofs = Rooflines(device)
        with BlasThreads(1):  # on matrices so small, more threads mostly wait for each other
            fits = {kind: _fit(found, roofs) for kind, found in sorted(kinds.items()) if len(found) >= MIN_POINTS}
        return CostModel(device, fits)

    def predict(self, loads: Sequence[Workload]) -> list[Prediction]:
        """What each load should take, in order."""
        bounds = Rooflines(self.device)
        roofs = [bounds.of(load) for load in loads]
        ratios: dict[int, tuple[float, float]] = {}
        kinds: dict[str, list[int]] = {}
        for at, load in enumerate(loads):
            if load.work.kind in self.fits:
                kinds.setdefault(load.work.kind, []).append(at)
        for kind, places in kinds.items():
            means, deviations = self.fits[kind].ask(np.stack([_features(loads[at], roofs[at]) for at in places]))
            ratios.update(zip(places, zip(means.tolist(), deviations.tolist(), strict=True), strict=True))
        return [_prediction(roof, ratios.get(at)) for at, roof in enumerate(roofs)]


def cost_model(store: Store | None, here: Here, device: DeviceProfile) -> CostModel:
    """The model of what is stored and fresh for this device and build; made anew when there are newer measurements."""
    if store is None:
        return CostModel(device)
    key = (store.label, device.fingerprint, here.build.id, str(device.probed_at), store.measurements.newest(here))
    if key not in _cache:
        _cache[key] = CostModel.fitted(device, points_of(store.measurements.evidence(here)))
        while len(_cache) > _MODELS:
            _cache.popitem(last=False)
    return _cache[key]


_cache: OrderedDict[tuple[str, str, str, str, int], CostModel] = OrderedDict()


def points_of(measurements: Iterable[Measurement]) -> list[Point]:
    """Measurements as points; those whose load is not known, or not of this build's form, are left out."""
    points = []
    for item in measurements:
        if not item.load or item.min_ns <= 0:
            continue
        try:
            load = Workload.from_text(item.load)
        except RecordFormatError:  # imported from a build that says it otherwise
            continue
        error_ns = floor_error_ns(item.samples, item.min_ns, item.p50_ns)
        points.append(Point(load, item.min_ns, error_ns / item.min_ns, item.signature_key))
    return points


def floor_error_ns(samples: int, min_ns: float, p50_ns: float) -> float:
    """Standard error of the fastest of so many runs as what they would take undisturbed: delays are taken for exponential, whose
    median is ln 2 of their mean, and the least of n of which is a mean ÷ n on average, with a standard deviation of as much."""
    return max(p50_ns - min_ns, 0.0) / math.log(2) / samples


def _prediction(roof: Roofline, ratio: tuple[float, float] | None) -> Prediction:
    if ratio is None:
        return Prediction(roof.ns, roof.ns / UNCERTAINTY, roof.ns * UNCERTAINTY, False, roof.bound_by, roof.level)
    mean, deviation = ratio
    ns = roof.ns * math.exp(mean)
    factor = math.exp(_SIGMAS * deviation)
    return Prediction(ns, ns / factor, ns * factor, True, roof.bound_by, roof.level)


def _features(load: Workload, roof: Roofline) -> Array:
    """What the ratio to the roofline may depend on, all in logarithms.

    Of a tile also its accumulators and the operands that are loaded for each of them; of the bytes, which decide the caches that
    panels come from, each part by itself: their sum is in the roofline.
    """
    work = load.work
    tile = [*work.tile, *[0] * _TILE][:_TILE]
    pixels, vectors = max(tile[0], 1), max(tile[1], 1)
    return np.log(
        [
            1 + roof.compute_ns,
            1 + roof.memory_ns,
            1 + roof.weights_ns,
            1 + roof.conversion_ns / roof.ns,
            imbalance(work.chunks, load.threads),
            work.chunks,
            work.calls,
            load.threads,
            *(1 + size for size in tile),
            pixels * vectors,
            (pixels + vectors) / (pixels * vectors),
            1 + work.weight_bytes,
            1 + work.read_bytes,
            1 + work.write_bytes,
        ]
    )


def _fit(points: Sequence[Point], bounds: Rooflines) -> _Fit:
    points = _thinned(points, MAX_POINTS)
    roofs = [bounds.of(point.load) for point in points]
    raw = np.stack([_features(point.load, roof) for point, roof in zip(points, roofs, strict=True)])
    y = np.log([point.ns / roof.ns for point, roof in zip(points, roofs, strict=True)])
    noise = np.array([_NOISE**2 + point.noise**2 for point in points]) + _beyond(y) ** 2
    middle, spread = raw.mean(0), raw.std(0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    x = (raw - middle) / scale
    some = slice(None, None, -(-len(points) // _TUNED_ON))
    length, height = max(
        ((length, height) for length in _LENGTHS for height in _HEIGHTS),
        key=lambda pair: _evidence(x[some], y[some], noise[some], *pair),
    )
    inverse = np.linalg.inv(_kernel(x, x, length, height) + np.diag(noise))
    return _Fit(middle, scale, x, inverse @ y, inverse, length, height)


def _beyond(y: Array) -> Array:
    """How far each lies beyond the others of its kind: a run that was interrupted tells little, and is taken for noise."""
    away = np.abs(y - np.median(y))
    return np.asarray(np.maximum(away - _OUTLIERS * np.median(away), 0))


def _thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most so many, spread over all by a hash, the same ones every time."""
    if len(points) <= most:
        return points
    return sorted(points, key=lambda point: hashlib.sha256(f"{point.group}{point.load}".encode()).digest())[:most]


def _kernel(a: Array, b: Array, length: float, height: float) -> Array:
    """Covariance of two sets of points: constant, trend and smooth part."""
    features = a.shape[1]
    distance = (np.sum(a * a, 1)[:, None] + np.sum(b * b, 1)[None, :] - 2 * (a @ b.T)) / features
    smooth = height**2 * np.exp(-np.maximum(distance, 0) / (2 * length**2))
    return np.asarray(_CONSTANT**2 + _SLOPE**2 * (a @ b.T) / features + smooth)


def _evidence(x: Array, y: Array, noise: Array, length: float, height: float) -> float:
    """Logarithm of the marginal likelihood, up to a constant."""
    covariance = _kernel(x, x, length, height) + np.diag(noise)
    return float(-0.5 * y @ np.linalg.solve(covariance, y) - 0.5 * np.linalg.slogdet(covariance)[1])
