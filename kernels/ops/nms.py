"""NonMaxSuppression: the best boxes of each class, without those that overlap a better one."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError, UnsupportedError
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import Array, DType, Spec

MAX_COMPARISONS = 2**31  # of boxes in one call: about a minute

_F32, _INT64 = frozenset({np.dtype(np.float32)}), frozenset({np.dtype(np.int64)})


def infer(
    boxes: Spec,
    scores: Spec,
    max_output_boxes_per_class: Spec | None = None,
    iou_threshold: Spec | None = None,
    score_threshold: Spec | None = None,
    *,
    center_point_box: int = 0,
) -> Spec:
    """boxes (batch, n, 4) and scores (batch, classes, n) make (selected, 3): batch, class and box number, int64."""
    one_of("NonMaxSuppression: attribute center_point_box", center_point_box, (0, 1))
    require_dtype("NonMaxSuppression: boxes", boxes, _F32)
    require_dtype("NonMaxSuppression: scores", scores, _F32)
    if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4 or (boxes.shape[0], boxes.shape[1]) != scores.shape[::2]:
        raise ShapeError(f"NonMaxSuppression: boxes are {boxes}, scores {scores}, need (batch, n, 4) and (batch, classes, n)")
    most = _limit("max_output_boxes_per_class", max_output_boxes_per_class, _INT64)
    overlap = _limit("iou_threshold", iou_threshold, _F32)
    if overlap is not None and not 0 <= overlap.item() <= 1:
        raise AttributeValueError(f"NonMaxSuppression: iou_threshold is {overlap.item()}, need 0 to 1")
    least = _limit("score_threshold", score_threshold, _F32)
    values = boxes.known("NonMaxSuppression: boxes"), scores.known("NonMaxSuppression: scores")
    return Spec((len(_select(*values, most, overlap, least, center_point_box)), 3), np.dtype(np.int64))


def _limit(name: str, limit: Spec | None, dtypes: frozenset[DType]) -> Array | None:
    if limit is None:
        return None
    require_dtype(f"NonMaxSuppression: {name}", limit, dtypes)
    if limit.elements != 1:
        raise ShapeError(f"NonMaxSuppression: {name} is {limit}, need a scalar")
    return limit.known(f"NonMaxSuppression: {name}")


def cost(out: tuple[Spec, ...], boxes: Spec, scores: Spec, *limits: Spec | None, **attrs: Any) -> Cost:
    """At most, since the data decide: 3 per box (area), 1 per score (compare), 13 per class and pair of boxes (overlap)."""
    pairs = boxes.shape[1] * (boxes.shape[1] - 1) // 2
    return Cost(
        other_flops=3 * boxes.shape[0] * boxes.shape[1] + scores.elements + 13 * scores.shape[0] * scores.shape[1] * pairs
    )


def run(
    out: tuple[Array, ...],
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> None:
    """Repeat the selection whose size `infer` computed."""
    out[0][...] = _select(boxes, scores, max_output_boxes_per_class, iou_threshold, score_threshold, center_point_box)


def _select(
    boxes: Array, scores: Array, most: Array | None, iou: Array | None, least: Array | None, center_point_box: int
) -> Array:
    """Select greedily, best score first, the first box of equals. Raises UnsupportedError after MAX_COMPARISONS of boxes."""
    limit = 0 if most is None else int(most.item())
    overlap = 0.0 if iou is None else float(iou.item())
    found: list[tuple[int, int, int]] = []
    if limit <= 0:
        return np.zeros((0, 3), np.int64)
    compared = 0
    for batch in range(len(boxes)):
        placed = _Boxes(*_corners(boxes[batch], center_point_box))
        for label, score in enumerate(scores[batch]):
            order = np.argsort(-score, kind="stable")
            if least is not None:
                order = order[score[order] > least.item()]
            left = np.zeros(len(score), np.bool_)
            left[order] = True
            kept = 0
            for best in order:
                if kept == limit:
                    break
                if left[best]:
                    found.append((batch, label, int(best)))
                    kept += 1
                    left[best] = False
                    compared += placed.remove_overlapping(best, left, overlap)
                if compared > MAX_COMPARISONS:
                    raise UnsupportedError(
                        f"NonMaxSuppression: more than {MAX_COMPARISONS} comparisons of {boxes.shape[1]} boxes, the limit, lower "
                        f"max_output_boxes_per_class ({limit}) or raise score_threshold"
                    )
    return np.array(found, np.int64).reshape(-1, 3)


class _Boxes:
    """The boxes of one batch by their lower and upper corners, sorted along the axis on which they lie farther apart.

    A box can overlap only those that begin before it ends, and not more than the longest length before it begins: few of many.
    """

    def __init__(self, low: Array, high: Array) -> None:
        self._low, self._high = low, high
        self._area = (high - low).prod(1)
        finite = np.flatnonzero(np.isfinite(low).all(1) & np.isfinite(high).all(1))  # others overlap none
        spans = [self._begins(finite, axis) for axis in range(2)]
        self._axis = int(np.argmax([np.ptp(begins) / (longest or 1) if begins.size else 0 for begins, longest in spans]))
        self._begin, self._longest = spans[self._axis]
        order = np.argsort(self._begin, kind="stable")
        self._begin, self._sorted = self._begin[order], finite[order]

    def _begins(self, finite: Array, axis: int) -> tuple[Array, float]:
        """Return where boxes begin along an axis and the length of the longest, in float64: rounding hides no neighbour."""
        begins = self._low[finite, axis].astype(np.float64)
        return begins, float((self._high[finite, axis] - begins).max(initial=0))

    def remove_overlapping(self, best: int, left: Array, overlap: float) -> int:
        """Clear `left` for the boxes that overlap box `best` by more than that. Returns the number of boxes looked at."""
        begin, end = float(self._low[best, self._axis]), float(self._high[best, self._axis])
        first, behind = np.searchsorted(self._begin, (begin - self._longest, end))
        near = self._sorted[first:behind]
        others = near[left[near]]
        low, high = self._low, self._high
        common = np.clip(np.minimum(high[best], high[others]) - np.maximum(low[best], low[others]), 0, None).prod(1)
        union = self._area[best] + self._area[others] - common
        ratio = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
        left[others[ratio > overlap]] = False
        return len(near)


def _corners(boxes: Array, center_point_box: int) -> tuple[Array, Array]:
    """Lower and upper corners, from [x, y, width, height] around a centre or from any two opposite corners."""
    if center_point_box:
        half = boxes[:, 2:] / 2
        return boxes[:, :2] - half, boxes[:, :2] + half
    return np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])


_BOXES = np.array(
    [[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, -0.1, 1, 0.9], [0, 10, 1, 11], [1, 11.1, 0, 10.1], [0, 100, 1, 101]]], np.float32
)
_SCORES = np.array([[[0.9, 0.75, 0.6, 0.95, 0.5, 0.3], [0.1, 0.2, 0.3, 0.3, 0.9, 0.9]]], np.float32)


def _limits(most: int, iou: float, least: float | None = None) -> tuple[Any, ...]:
    return np.array([most], np.int64), np.array([iou], np.float32), None if least is None else np.array([least], np.float32)


_CASES = (
    Case("by_overlap", inputs=(_BOXES, _SCORES, *_limits(3, 0.5, 0.0))),
    Case("by_score", inputs=(_BOXES, _SCORES, *_limits(3, 0.5, 0.4))),
    Case("two_a_class", inputs=(_BOXES, _SCORES, *_limits(2, 0.5))),
    Case("centres", inputs=(np.abs(_BOXES) + 0.5, _SCORES, *_limits(3, 0.5, 0.0)), attrs={"center_point_box": 1}),
    Case("none_asked_for", inputs=(_BOXES, _SCORES)),
    Case("no_boxes", inputs=(np.zeros((1, 0, 4), np.float32), np.zeros((1, 2, 0), np.float32), *_limits(3, 0.5))),
    Case("same_box", inputs=(np.repeat(_BOXES[:, :1], 3, 1), _SCORES[:, :1, :3].copy(), *_limits(3, 0.5))),
    Case("counts_differ", inputs=(_BOXES, _SCORES[:, :, :3].copy()), raises=ShapeError),
    Case("iou_two", inputs=(_BOXES, _SCORES, *_limits(3, 2.0)), raises=AttributeValueError),
    Case("float64", inputs=(_BOXES.astype(np.float64), _SCORES), raises=DTypeError),
)

NON_MAX_SUPPRESSION = Op("NonMaxSuppression", infer, cost, (Kernel("greedy", run, scratch_bytes=times(3)),), cases=_CASES)
