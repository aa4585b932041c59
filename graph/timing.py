"""What a timed run took: each of its steps, and each thread at every moment; reckoned when the run is over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.spec import Array


@dataclass(frozen=True, slots=True)
class Slice:
    """A thread in a step: at work, or waiting for the others to end it. start_ns: since the run began."""

    thread: int
    step: int
    start_ns: int
    duration_ns: int
    waits: bool = False


@dataclass(frozen=True, slots=True)
class SegmentClock:
    """What the threads of a native segment read from the processor's clock in one run.

    began_ns, ended_ns: of the whole. ticks: (threads, calls, 3): before a call's work, after it, after its barrier. nodes: how
    many nodes the segment has; node_of: of every call, the one it belongs to.
    """

    began_ns: int
    ended_ns: int
    ticks: Array
    nodes: int
    node_of: Sequence[int]

    def node_ns(self) -> list[int]:
        """The segment's time by node: a call lasts from the end of the one before it to when its last thread is done."""
        shares = [0.0] * self.nodes
        if self.node_of:
            ends = np.maximum.accumulate(self.ticks[:, :, 1].max(0))
            starts = np.concatenate(([self._first], ends[:-1]))
            for node, ticks_taken in zip(self.node_of, ends - starts, strict=True):
                shares[node] += int(ticks_taken) * self._scale
        return [round(share) for share in shares]

    def slices(self, step: int, run_began_ns: int) -> Iterator[Slice]:
        """What each thread did. step: of the first node."""
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
        """Nanoseconds of a tick: from the first thread's start to the last one's end is the whole."""
        return (self.ended_ns - self.began_ns) / max(int(self.ticks[:, :, 1].max()) - self._first, 1)


@dataclass(frozen=True, slots=True)
class RunClock:
    """What one run read from the clock.

    marks_ns: when the first position began and when each one ended; a position is a step, or a segment of several. segments: the
    latter, by position.
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
        """What every thread did; steps outside of segments are the first one's."""
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
