"""NonMaxSuppression over many boxes: what a comparison of each with all others selects, in a bounded number of steps."""

import numpy as np
import pytest

from kernels.errors import UnsupportedError
from kernels.ops import nms
from kernels.registry import evaluate
from kernels.spec import Array


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes given by any opposite corners, in float32 as the operator computes."""
    low = [np.minimum(box[:2], box[2:]) for box in (a, b)]
    high = [np.maximum(box[:2], box[2:]) for box in (a, b)]
    common = np.clip(np.minimum(*high) - np.maximum(*low), 0, None).prod()
    union = (high[0] - low[0]).prod() + (high[1] - low[1]).prod() - common
    return common / union if union > 0 else 0.0


def one_by_one(boxes: Array, scores: Array, most: int, iou: float) -> list[int]:
    found: list[int] = []
    for at in np.argsort(-scores, kind="stable"):
        if len(found) < most and not any(overlap(boxes[kept], boxes[at]) > iou for kept in found):
            found.append(int(at))
    return found


def selected(boxes: Array, scores: Array, most: int, iou: float) -> list[int]:
    limits = np.array([most], np.int64), np.array([iou], np.float32)
    (y,) = evaluate(nms.NON_MAX_SUPPRESSION, [boxes[None], scores[None, None], *limits], {})
    return y[:, 2].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_few_comparisons_select_what_all_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = (rng.random((40, 4)) * rng.choice([1, 5, 40], 4)).astype(np.float32)
    scores = np.round(rng.random(40), 1).astype(np.float32)
    if seed % 3 == 0:
        boxes = np.round(boxes)
    if seed % 5 == 0:
        boxes[seed % 40, seed % 4] = (np.nan, np.inf, -np.inf)[seed % 3]
    iou = (0.0, 0.25, 0.5, 1.0)[seed % 4]
    with np.errstate(all="ignore"):
        assert selected(boxes, scores, 30, iou) == one_by_one(boxes, scores, 30, iou)


def spread_boxes(n: int) -> tuple[Array, Array]:
    """Boxes at the same density however many there are, on a strip that goes up."""
    rng = np.random.default_rng(0)
    corner = (rng.random((n, 2)) * (20, n)).astype(np.float32)
    return np.concatenate([corner, corner + 4], 1), rng.random(n).astype(np.float32)


def compared(monkeypatch: pytest.MonkeyPatch, n: int) -> int:
    counts: list[int] = []
    remove = nms._Boxes.remove_overlapping
    with monkeypatch.context() as patch:
        patch.setattr(nms._Boxes, "remove_overlapping", lambda *a: counts.append(remove(*a)) or counts[-1])
        selected(*spread_boxes(n), n, 0.5)
    return sum(counts)


def test_comparisons_grow_with_the_boxes_where_these_are_spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(monkeypatch, 2000) < 5 * compared(monkeypatch, 500)


def test_too_many_comparisons_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "MAX_COMPARISONS", 1000)
    boxes = np.repeat(np.array([[0, 0, 1, 1]], np.float32), 200, 0) + np.linspace(0, 0.1, 200, dtype=np.float32)[:, None]
    with pytest.raises(
        UnsupportedError, match=r"more than 1000 comparisons of 200 boxes, the limit, lower max_output_boxes_per_class \(200\)"
    ):
        selected(boxes, np.linspace(0, 1, 200, dtype=np.float32), 200, 1.0)
