"""The accuracy of the cost model on held-out measurements, by cross-validation.

Folds are split by signature, so a model has seen no candidate of the work that it is tested on. For each kind of kernel: the
median absolute percentage error, and Spearman's rank correlation between predicted and measured times of the candidates of one
signature (the mean over signatures with at least LEAST_RANKED).

The order of candidates that lie within each other's noise cannot be predicted. So two more figures are given: the ceiling, which
is the correlation that exact predictions would reach, and Goodman and Kruskal's gamma over those pairs that measurements tell
apart.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from kernels.record import record
from kernels.spec import Array
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.cost.fitting import CostModel, Point, Prediction, points_of
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import TIE
from scheduler.store import Here, Store

FOLDS: Final = 5
LEAST_RANKED: Final = 3  # candidates of one signature, for a rank correlation to mean something
APART: Final = 2.0  # standard errors of their difference that tell two times apart, beyond a tie
_DRAWS: Final = 32  # of noise, for the ceiling
ALL: Final = "all"


@record
class Accuracy:
    """The accuracy for one kind of kernel, or for all.

    points: held-out measurements, each once. works: signatures at one thread count that were ranked. spearman, ceiling: means
    over works, None without any. pairs: candidates of one work that are told apart; gamma: of their predicted order.
    fitted_percent: share of the points that a fit predicted, not the roofline alone.
    """

    kind: str
    points: int
    works: int
    error_percent: float
    spearman: float | None
    ceiling: float | None
    pairs: int
    gamma: float | None
    fitted_percent: float


@record
class _Held:
    """A held-out point with its prediction."""

    point: Point
    prediction: Prediction


def evaluate(device: DeviceProfile, points: Sequence[Point], folds: int = FOLDS) -> list[Accuracy]:
    """Cross-validate the cost model. Returns the accuracy of every kind of kernel by name, then of all; empty without points."""
    held: list[_Held] = []
    for fold in range(folds):
        seen = [point for point in points if _fold(point.group, folds) != fold]
        unseen = [point for point in points if _fold(point.group, folds) == fold]
        if unseen:
            found = CostModel.fitted(device, seen).predict([point.load for point in unseen])
            held += [_Held(point, prediction) for point, prediction in zip(unseen, found, strict=True)]
    if not held:
        return []
    kinds = sorted({item.point.load.work.family for item in held})
    return [*(_accuracy(kind, [h for h in held if h.point.load.work.family == kind]) for kind in kinds), _accuracy(ALL, held)]


def evaluate_stored(store: Store) -> list[Accuracy]:
    """Evaluate on this machine's stored measurements that are fresh; a new machine is measured first."""
    device = local_device(store, 8.0)
    return evaluate(device, points_of(store.measurements.evidence(Here(local_fingerprint(), current_build()))))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; ties share their mean rank. None where all values of one side are equal."""
    x, y = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def _accuracy(kind: str, held: Sequence[_Held]) -> Accuracy:
    errors = [abs(item.prediction.ns / item.point.ns - 1) for item in held]
    works: dict[tuple[str, int], list[_Held]] = {}
    for item in held:
        works.setdefault((item.point.group, item.point.load.threads), []).append(item)
    ranked: list[float] = []
    ceilings: list[float] = []
    for group in works.values():
        if len(group) >= LEAST_RANKED:
            found = spearman([item.prediction.ns for item in group], [item.point.ns for item in group])
            ranked += [] if found is None else [found]
            ceilings += [] if found is None else [_ceiling([item.point for item in group])]
    orders = [order for group in works.values() for order in _orders(group)]
    return Accuracy(
        kind=kind,
        points=len(held),
        works=len(ranked),
        error_percent=100 * float(np.median(errors)),
        spearman=float(np.mean(ranked)) if ranked else None,
        ceiling=float(np.mean(ceilings)) if ceilings else None,
        pairs=len(orders),
        gamma=float(np.mean(orders)) if orders else None,
        fitted_percent=100 * sum(item.prediction.fitted for item in held) / len(held),
    )


def _error_ns(point: Point) -> float:
    """Return the standard error of a measured time."""
    return point.noise * point.ns


def _ceiling(points: Sequence[Point]) -> float:
    """Return the mean rank correlation between these times and the same times with fresh noise.

    Single runs are not stored, so halves of them cannot be compared; noise is drawn by the times' standard errors instead.
    """
    rng = np.random.default_rng(0)
    ns, errors = np.array([point.ns for point in points]), np.array([_error_ns(point) for point in points])
    drawn = ns + errors * rng.standard_normal((_DRAWS, len(points)))
    return float(np.mean([spearman(ns.tolist(), times.tolist()) or 0.0 for times in drawn]))


def _orders(group: Sequence[_Held]) -> list[float]:
    """Return for each pair that is told apart: 1 where its order was predicted, -1 where the opposite was, 0 where a tie was."""
    found = []
    for fast, slow in itertools.combinations(sorted(group, key=lambda item: item.point.ns), 2):
        apart_ns = slow.point.ns - fast.point.ns
        if apart_ns > APART * math.hypot(_error_ns(fast.point), _error_ns(slow.point)) and slow.point.ns > TIE * fast.point.ns:
            found.append(float(np.sign(slow.prediction.ns - fast.prediction.ns)))
    return found


def _fold(group: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % folds


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)
