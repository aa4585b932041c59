"""How well the cost model predicts what it never saw: held-out measurements, fold by fold.

Folds are by signature, so that nothing of a held-out piece of work was seen. Of each kind of kernel: the median absolute
percentage error, and how well the candidates of one piece of work are ranked (Spearman, mean over the works that have enough).

Candidates that lie within each other's noise are in no order that anything could predict. So beside the raw figure stand its
ceiling, which a model would score that knew every time exactly, and the rank correlation (Goodman and Kruskal's gamma) of those
pairs alone that the measurements tell apart.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kernels.spec import Array
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.cost.fitting import CostModel, Point, Prediction, points_of
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import TIE
from scheduler.store import Here, Store

FOLDS: Final = 5
LEAST_RANKED: Final = 3  # candidates of a work whose ranking says something
APART: Final = 2.0  # standard errors of their difference that two times are told apart by, beyond a tie
_DRAWS: Final = 32  # of the noise of a work's times, for the ceiling
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one kind of kernel, or of all. points: held-out measurements, each once. works: signatures and thread counts that were
    ranked. spearman, ceiling: None where none could be. pairs: of candidates of one work that are told apart; gamma: of the order
    these were predicted in. fitted_percent: of the points, that a fit predicted and not the roofline alone."""

    kind: str
    points: int
    works: int
    error_percent: float
    spearman: float | None
    ceiling: float | None
    pairs: int
    gamma: float | None
    fitted_percent: float


@dataclass(frozen=True, slots=True)
class _Held:
    """A held-out point with what was predicted of it."""

    point: Point
    prediction: Prediction


def evaluate(device: DeviceProfile, points: Sequence[Point], folds: int = FOLDS) -> list[Accuracy]:
    """Every kind of kernel by name, then all together; empty without points."""
    held: list[_Held] = []
    for fold in range(folds):
        seen = [point for point in points if _fold(point.group, folds) != fold]
        unseen = [point for point in points if _fold(point.group, folds) == fold]
        if unseen:
            found = CostModel.fitted(device, seen).predict([point.load for point in unseen])
            held += [_Held(point, prediction) for point, prediction in zip(unseen, found, strict=True)]
    if not held:
        return []
    kinds = sorted({item.point.load.work.kind for item in held})
    return [*(_accuracy(kind, [h for h in held if h.point.load.work.kind == kind]) for kind in kinds), _accuracy(ALL, held)]


def evaluate_stored(store: Store) -> list[Accuracy]:
    """Of what is stored and fresh for this machine, which is measured first when it is new."""
    device = local_device(store, 8.0)
    return evaluate(device, points_of(store.measurements.evidence(Here(local_fingerprint(), current_build()))))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; ties share their mean rank. None where one of them is all alike."""
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
    """Standard error of a measured time."""
    return point.noise * point.ns


def _ceiling(points: Sequence[Point]) -> float:
    """What the true times would score against times with the noise of these: the mean over draws of that noise.

    Runs are not stored, so two halves of them cannot be compared; the times' standard errors stand for that.
    """
    rng = np.random.default_rng(0)
    ns, errors = np.array([point.ns for point in points]), np.array([_error_ns(point) for point in points])
    drawn = ns + errors * rng.standard_normal((_DRAWS, len(points)))
    return float(np.mean([spearman(ns.tolist(), times.tolist()) or 0.0 for times in drawn]))


def _orders(group: Sequence[_Held]) -> list[float]:
    """Of each pair that is told apart: 1 where it was predicted in its order, -1 where in the other, 0 where alike."""
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
