"""How a tensor of any rank lies in memory: strides for each dimension, so that reshapes, transposes and slices cost nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernels.record import record
from kernels.size import surely_equal


@record
class View:
    """Element (i, j, …) lies `offset + i·strides[0] + j·strides[1] + …` elements after the beginning of its memory.

    A stride of 0 repeats one element along a dimension; only views that are read may have it.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def dense(shape: Sequence[int]) -> View:
        """Return the row-major view without gaps, as numpy allocates arrays."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return View(tuple(shape), tuple(strides))

    @property
    def is_dense(self) -> bool:
        """Whether it is row-major, without gaps, from the beginning of its memory; a stride of one element is free."""
        wanted = View.dense(self.shape).strides
        return self.offset == 0 and all(size == 1 or a == b for size, a, b in zip(self.shape, self.strides, wanted, strict=True))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the beginning of its memory to behind the last that it reaches."""
        return self.offset + sum((size - 1) * max(stride, 0) for size, stride in zip(self.shape, self.strides, strict=True)) + 1

    def transposed(self, axes: Sequence[int]) -> View:
        """Return the view whose dimension i is dimension axes[i] of this one."""
        return View(tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes), self.offset)

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        """Return `count` elements of a dimension, from `start` on, `step` apart (which may be negative)."""
        shape, strides = list(self.shape), list(self.strides)
        shape[axis], strides[axis] = count, strides[axis] * step
        return View(tuple(shape), tuple(strides), self.offset + start * self.strides[axis])

    def picked(self, axis: int, index: int) -> View:
        """Return one element of a dimension, which is removed."""
        taken = self.sliced(axis, index, 1)
        return View(taken.shape[:axis] + taken.shape[axis + 1 :], taken.strides[:axis] + taken.strides[axis + 1 :], taken.offset)

    def broadcast(self, shape: Sequence[int]) -> View:
        """Return the view repeated to a shape by numpy's rule; the shapes must fit."""
        extra = len(shape) - len(self.shape)
        strides = [0] * extra + [0 if size == 1 else stride for size, stride in zip(self.shape, self.strides, strict=True)]
        return View(tuple(shape), tuple(strides), self.offset)

    def surely_equals(self, other: View) -> bool:
        """Whether another view has the same elements for all sizes; it assumes nothing of sizes that depend on symbols."""
        mine, its = ((*view.shape, *view.strides, view.offset) for view in (self, other))
        return surely_equal(mine, its)

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """Return these elements, in order, under another shape; None where no strides express that."""
        old = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        strides: list[int] = []
        sizes = list(shape)
        if self.size == 0:
            return View.dense(shape)
        at = 0
        while at < len(sizes):
            if sizes[at] == 1:
                strides.append(0)
                at += 1
                continue
            if not old:
                return None
            size, stride = old.pop(0)
            group = [sizes[at]]
            at += 1
            while math.prod(group) != size:
                if math.prod(group) < size and at < len(sizes):
                    group.append(sizes[at])
                    at += 1
                elif math.prod(group) > size and old and stride == old[0][0] * old[0][1]:
                    more, stride = old.pop(0)
                    size *= more
                else:
                    return None
            strides += [math.prod(group[i + 1 :]) * stride for i in range(len(group))]
        return View(tuple(shape), tuple(strides), self.offset) if not old else None
