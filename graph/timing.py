"""Times of steps and threads, computed from the clock readings of a run once it is over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kernels.record import record
from kernels.spec import Array


@record
class Slice:
    """An interval of a thread in a step: at work, or waiting for the other threads. start_ns: since the run began."""

    thread: int
    step: int
    start_ns: int
    duration_ns: int
    waits: bool = False


@record
class SegmentClock:
    """Clock readings of the threads of a native segment in one run.

    began_ns, ended_ns: of the whole segment. ticks: (threads, calls, 3) of the processor's clock: before a call's work, after it
    (as before, where the thread found none), and where the thread goes on. nodes: how many nodes the segment has. node_of: the
    position of the node that each call belongs to.
    """

    began_ns: int
    ended_ns: int
    ticks: Array
    nodes: int
    node_of: Sequence[int]

    def node_ns(self) -> list[int]:
        """Nanoseconds of each node. A call lasts from the end of the previous one until its last thread is done."""
        shares = [0.0] * self.nodes
        if self.node_of:
            worked = self.ticks[:, :, 1] > self.ticks[:, :, 0]  # a thread that came late to a call has no part in it
            ends = np.maximum.accumulate(np.where(worked, self.ticks[:, :, 1], self._first).max(0))
            starts = np.concatenate(([self._first], ends[:-1]))
            for node, ticks_taken in zip(self.node_of, ends - starts, strict=True):
                shares[node] += int(ticks_taken) * self._scale
        return [round(share) for share in shares]

    def slices(self, step: int, run_began_ns: int) -> Iterator[Slice]:
        """Yield the intervals of each thread. step: number of the segment's first node."""
        if not self.node_of:
            return
        at_ns = np.rint((self.ticks - self._first) * self._scale).astype(np.int64)
        at_ns = np.minimum(at_ns, self.ended_ns - self.began_ns) + (self.began_ns - run_began_ns)
        for thread, calls in enumerate(at_ns.tolist()):
            for node, (begins, done, goes_on) in zip(self.node_of, calls, strict=True):
                if done > begins:
                    yield Slice(thread, step + node, begins, done - begins)
                if goes_on > done:
                    yield Slice(thread, step + node, done, goes_on - done, waits=True)

    @property
    def _first(self) -> int:
        return int(self.ticks[:, 0, 0].min())

    @property
    def _scale(self) -> float:
        """Nanoseconds per tick: the ticks from the first start to the last end take the time of the whole segment."""
        return (self.ended_ns - self.began_ns) / max(int(self.ticks[:, :, 1].max()) - self._first, 1)


@record
class RunClock:
    """Clock readings of one run.

    marks_ns: when the first position began and when each one ended; a position is a step, or a segment of several steps.
    segments: position -> clock readings of the segment.
    """

    began_ns: int
    marks_ns: Sequence[int]
    segments: Mapping[int, SegmentClock]

    def step_ns(self) -> list[int]:
        """Nanoseconds of every step."""
        taken: list[int] = []
        for position, (began_ns, ended_ns) in enumerate(itertools.pairwise(self.marks_ns)):
            segment = self.segments.get(position)
            taken += [ended_ns - began_ns] if segment is None else segment.node_ns()
        return taken

    def slices(self) -> list[Slice]:
        """Yield the intervals of every thread; steps outside of segments run on the first thread."""
        found: list[Slice] = []
        step = 0
        for position, (began_ns, ended_ns) in enumerate(itertools.pairwise(self.marks_ns)):
            segment = self.segments.get(position)
            if segment is None:
                found.append(Slice(0, step, began_ns - self.began_ns, ended_ns - began_ns))
            else:
                found += segment.slices(step, self.began_ns)
            step += 1 if segment is None else segment.nodes
        return found
