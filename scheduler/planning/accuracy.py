"""The error of a plan on samples: how far the outputs of a model differ from those in fp32 on the same machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graph.errors import FeedError
from graph.run.executor import Executor
from graph.run.feeds import check_feeds
from kernels.spec import Array
from scheduler.plan import Plan
from scheduler.planning.subject import Subject

Feeds = Mapping[str, Array]


class Reference:
    """The outputs of a model in fp32 for some samples, to compare plans with. Raises FeedError for samples of other shapes."""

    def __init__(self, subject: Subject, samples: Sequence[Feeds]) -> None:
        self._subject = subject
        self._samples = [self._checked(feeds) for feeds in samples]
        native = None if subject.native is None else replace(subject.native, precisions=("fp32",))
        executor = Executor(subject.graph, subject.specs, {}, backend=native)
        self._outputs = [executor.run(feeds) for feeds in self._samples]

    def _checked(self, feeds: Feeds) -> dict[str, Array]:
        found = check_feeds(self._subject.model.graph.inputs, feeds)
        for item in self._subject.inputs:
            if found[item.name].shape != item.shape:
                raise FeedError(
                    f"sample of input {item.name!r}: its shape is {list(found[item.name].shape)}, need {list(item.shape)}"
                )
        return found

    def error_of(self, plan: Plan) -> float:
        """Return the largest difference of an output, relative to the largest number of that output."""
        executor = Executor(self._subject.graph, self._subject.specs, plan.choices, plan.threads, self._subject.native)
        return max(
            difference(made, exact[name])
            for feeds, exact in zip(self._samples, self._outputs, strict=True)
            for name, made in executor.run(feeds).items()
        )


def difference(made: Array, exact: Array) -> float:
    """Return the largest difference of two arrays relative to the largest number of the second; infinite where one is NaN alone.

    Of integers, bools and strings, which jump, it is the share of elements that differ.
    """
    if not exact.size:
        return 0.0
    if exact.dtype.kind not in "fV":
        return float((made != exact).mean())
    made, exact = made.astype(np.float64), exact.astype(np.float64)
    same = (made == exact) | (np.isnan(made) & np.isnan(exact))
    if same.all():
        return 0.0
    largest = np.abs(exact[np.isfinite(exact)]).max(initial=0.0)
    apart = float(np.abs(made[~same] - exact[~same]).max())
    return apart / float(largest) if largest and math.isfinite(apart) else math.inf
