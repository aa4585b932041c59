"""How well the cost model predicts what it never saw: held-out measurements, fold by fold.

Folds are by signature, so that nothing of a held-out piece of work was seen. Two figures a kind of kernel: the median absolute
percentage error, and how well the candidates of one piece of work are ranked (Spearman, mean over the works that have enough).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kernels.spec import Array
from profiler.device import DeviceProfile
from scheduler.build import current_build
from scheduler.fitting import CostModel, Point, Prediction, points_of
from scheduler.local import local_device, local_fingerprint
from scheduler.store import Here, Store

FOLDS: Final = 5
LEAST_RANKED: Final = 3  # candidates of a work whose ranking says something
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one kind of kernel, or of all. points: held-out measurements, each once. works: signatures and thread counts that were
    ranked. spearman: None where none could be. fitted_percent: of the points, that a fit predicted and not the roofline alone."""

    kind: str
    points: int
    works: int
    error_percent: float
    spearman: float | None
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
    ranked = [
        found
        for group in works.values()
        if len(group) >= LEAST_RANKED
        and (found := spearman([i.prediction.ns for i in group], [i.point.ns for i in group])) is not None
    ]
    return Accuracy(
        kind=kind,
        points=len(held),
        works=len(ranked),
        error_percent=100 * float(np.median(errors)),
        spearman=float(np.mean(ranked)) if ranked else None,
        fitted_percent=100 * sum(item.prediction.fitted for item in held) / len(held),
    )


def _fold(group: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % folds


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)
