"""Fitting the cost model: for each kind of kernel a factor on the roofline, with its uncertainty, from a device's measurements.

The logarithm of measured ÷ roofline is a Gaussian process (Rasmussen and Williams 2006, chapter 2) over the parts of the roofline
and the tiling of the kernel. Its covariance has a constant and a linear part, which say how this kind of kernel differs from its
roofline, and a squared-exponential part for the rest; the length and height of that part maximise the marginal likelihood
(section 5.4). Far from all measurements the prediction returns to the kind's linear trend with a wide uncertainty. A kind with
fewer than MIN_POINTS has no fit: its roofline is the estimate, within `UNCERTAINTY`. Written in numpy, for a bounded number of
points.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Final

import numpy as np

from graph.run.blas import BlasThreads
from kernels.record import record
from kernels.spec import Array
from profiler.device.profile import DeviceProfile
from scheduler.cost.bounds import UNCERTAINTY, Roofline, Rooflines, imbalance
from scheduler.errors import RecordFormatError
from scheduler.plan import BoundBy
from scheduler.store import Here, Measurement, Store
from scheduler.workload import Workload

MIN_POINTS: Final = 8  # of one kind of kernel; with fewer it has no fit
MAX_POINTS: Final = 320  # of one kind of kernel; a solve takes about 5 ms
_TUNED_ON: Final = 128  # points that the length and height of the smooth part are chosen on
_TILE: Final = 4  # sizes of a tile that are looked at
_CONSTANT, _SLOPE = math.log(UNCERTAINTY) / 2, 0.3  # standard deviations of the constant, and of the trend for one deviation
_LENGTHS, _HEIGHTS = (0.4, 0.8, 1.6), (0.08, 0.2)  # of the smooth part, in deviations of the features and in log time
_NOISE = 0.02  # least relative noise of a time: neighbours in the model, and the state of the machine
_SIGMAS = 1.645  # standard deviations to each bound: nine in ten times lie between the two
_OUTLIERS = 6.0  # median deviations from the median that a kind of kernel may spread
_MODELS = 8  # kept in memory


@record
class Point:
    """A measured workload. ns: its time. noise: relative standard error of that time. group: its signature, held out together."""

    load: Workload
    ns: float
    noise: float
    group: str


@record
class Prediction:
    """The expected time of a workload, between bounds.

    fitted: True = predicted by a fit, False = estimated by the roofline alone.
    """

    ns: float
    low_ns: float
    high_ns: float
    fitted: bool
    bound_by: BoundBy
    level: str


@record
class _Fit:
    """The Gaussian process of one kind of kernel.

    middle, scale: standardise features, (f,). x: standardised features of the n points, (n, f). weights: K⁻¹·y, (n,). inverse:
    K⁻¹, (n, n). length, height: of the squared-exponential part.
    """

    middle: Array
    scale: Array
    x: Array
    weights: Array
    inverse: Array
    length: float
    height: float

    def ask(self, features: Array) -> tuple[Array, Array]:
        """Predict log ratios. features: (m, f). Returns means and standard deviations, (m,) each: equations 2.25 and 2.26."""
        z = (features - self.middle) / self.scale
        cross = _kernel(z, self.x, self.length, self.height)
        prior = _CONSTANT**2 + _SLOPE**2 * np.mean(z * z, axis=1) + self.height**2
        return cross @ self.weights, np.sqrt(np.maximum(prior - np.sum((cross @ self.inverse) * cross, axis=1), 0) + _NOISE**2)


@record
class CostModel:
    """Predicts the time of workloads on one device. fits: by kind of kernel; a kind without one is estimated by its roofline."""

    device: DeviceProfile
    fits: Mapping[str, _Fit] = field(default_factory=dict, repr=False)

    @staticmethod
    def fitted(device: DeviceProfile, points: Iterable[Point]) -> CostModel:
        """Fit a model to points; kinds with fewer than MIN_POINTS stay without a fit."""
        kinds: dict[str, list[Point]] = {}
        for point in points:
            kinds.setdefault(point.load.work.family, []).append(point)
        roofs = Rooflines(device)
        with BlasThreads(1):  # on matrices so small, more threads mostly wait for each other
            fits = {kind: _fit(found, roofs) for kind, found in sorted(kinds.items()) if len(found) >= MIN_POINTS}
        return CostModel(device, fits)

    def predict(self, loads: Sequence[Workload]) -> list[Prediction]:
        """Predict the time of each workload, in order."""
        bounds = Rooflines(self.device)
        roofs = [bounds.of(load) for load in loads]
        ratios: dict[int, tuple[float, float]] = {}
        kinds: dict[str, list[int]] = {}
        for at, load in enumerate(loads):
            if load.work.family in self.fits:
                kinds.setdefault(load.work.family, []).append(at)
        for kind, places in kinds.items():
            means, deviations = self.fits[kind].ask(np.stack([_features(loads[at], roofs[at]) for at in places]))
            ratios.update(zip(places, zip(means.tolist(), deviations.tolist(), strict=True), strict=True))
        return [_prediction(roof, ratios.get(at)) for at, roof in enumerate(roofs)]


def cost_model(store: Store | None, here: Here, device: DeviceProfile) -> CostModel:
    """Return the cost model of a device, fitted to its fresh stored measurements; kept in memory until there are newer ones.

    Args: store: None = no measurements, the model estimates by the roofline.
    """
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
    """Turn measurements into points; those without a workload, or with one in another build's form, are left out."""
    points = []
    for item in measurements:
        if not item.load or item.min_ns <= 0:
            continue
        try:
            load = Workload.from_text(item.load)
        except RecordFormatError:  # imported from a build with another form
            continue
        error_ns = floor_error_ns(item.samples, item.min_ns, item.p50_ns)
        points.append(Point(load, item.min_ns, error_ns / item.min_ns, item.signature_key))
    return points


def floor_error_ns(samples: int, min_ns: float, p50_ns: float) -> float:
    """Return the standard error of a minimum of runs as an estimate of the undisturbed time, in nanoseconds.

    Delays are assumed to be exponential: their median is ln 2 times their mean m, and the least of n has mean and standard
    deviation m ÷ n.
    """
    return max(p50_ns - min_ns, 0.0) / math.log(2) / samples


def _prediction(roof: Roofline, ratio: tuple[float, float] | None) -> Prediction:
    if ratio is None:
        return Prediction(roof.ns, roof.ns / UNCERTAINTY, roof.ns * UNCERTAINTY, False, roof.bound_by, roof.level)
    mean, deviation = ratio
    ns = roof.ns * math.exp(mean)
    factor = math.exp(_SIGMAS * deviation)
    return Prediction(ns, ns / factor, ns * factor, True, roof.bound_by, roof.level)


def _features(load: Workload, roof: Roofline) -> Array:
    """Return the features that the ratio to the roofline may depend on, as logarithms, (f,).

    For the tile these include its number of accumulators and the operands loaded for each. Weights, input and output count one by
    one, because each decides which cache its panels come from; their sum is in the roofline.
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
    """Return how far each log ratio lies beyond the spread of its kind, (n,): the extra noise of runs that were interrupted."""
    away = np.abs(y - np.median(y))
    return np.asarray(np.maximum(away - _OUTLIERS * np.median(away), 0))


def _thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """Return at most that many points, picked by a hash: spread over all, and the same ones every time."""
    if len(points) <= most:
        return points
    return sorted(points, key=lambda point: hashlib.sha256(f"{point.group}{point.load}".encode()).digest())[:most]


def _kernel(a: Array, b: Array, length: float, height: float) -> Array:
    """Return the covariance of two sets of points, (n, f) and (m, f): constant, linear and squared-exponential part, (n, m)."""
    features = a.shape[1]
    distance = (np.sum(a * a, 1)[:, None] + np.sum(b * b, 1)[None, :] - 2 * (a @ b.T)) / features
    smooth = height**2 * np.exp(-np.maximum(distance, 0) / (2 * length**2))
    return np.asarray(_CONSTANT**2 + _SLOPE**2 * (a @ b.T) / features + smooth)


def _evidence(x: Array, y: Array, noise: Array, length: float, height: float) -> float:
    """Return the logarithm of the marginal likelihood, up to a constant: equation 2.30."""
    covariance = _kernel(x, x, length, height) + np.diag(noise)
    return float(-0.5 * y @ np.linalg.solve(covariance, y) - 0.5 * np.linalg.slogdet(covariance)[1])
