"""The fastest way to compute each launch of a segment that has several, measured on the GPU: by itself, then among the others.

Launches of equal problems share a result. By itself, a launch is timed among copies of itself, with its data in L2; the few that
are fastest there are then tried in the whole segment, where weights come from memory and launches overlap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from graph.choice import Choice
from graph.cuda.gpu import Gpu
from graph.cuda.lowering import Call, Option
from graph.cuda.segment import LoweredSegment, Segment
from graph.native.place import Storage
from kernels.cuda.program import Launch, Program, Replay
from kernels.errors import InvalidError

CONTEST = "EDGEWISE_GPU_CONTEST"  # environment variable: how many ways to compute each launch a session tries
MOST = 16  # options of a launch that are timed by themselves
FINALISTS = 5  # that are tried in the whole segment
ROUNDS = 2  # in which they are: what is best depends on the launches beside it
GAIN = 0.998  # of the segment's time: less is noise


def wanted_contest() -> int:
    """Return how many ways to compute each launch the environment asks to try. Raises InvalidError for what is no such number."""
    text = os.environ.get(CONTEST, "0")
    if not text.isdecimal():
        raise InvalidError(f"{CONTEST}: {text[:20]!r}, need a whole number, 0 for no contest")
    return int(text)


class Contest:
    """A contest of one segment, which a GPU holds memory for while this lives."""

    def __init__(self, lowered: LoweredSegment, gpu: Gpu, most: int = MOST) -> None:
        self._lowered, self._gpu, self._most = lowered, gpu, most
        self._segment: Segment = lowered.bind(gpu)
        self._chosen: list[Option] = list(lowered.chosen)
        self._scratch = gpu.context.allocate(max(1, max((s.nbytes for s in self._unplaced()), default=1)))
        self._addresses = {name: self._address(*where) for name, where in lowered.where.items()}
        self._groups: dict[object, list[int]] = {}
        for at, call in enumerate(lowered.calls):
            if len(call.options) > 1:
                self._groups.setdefault(_problem(call), []).append(at)

    def _unplaced(self) -> Sequence[Storage]:
        return [storage for storage, _ in self._lowered.where.values() if not self._segment.holds(storage)]

    def _address(self, storage: Storage, first_byte: int) -> int:
        """Return an address; options that are not chosen work in memory of their own, one at a time."""
        if self._segment.holds(storage):
            return self._segment.address(storage, first_byte)
        return self._scratch.address + first_byte

    def run(self) -> Mapping[str, Choice]:
        """Time the options, and return the best of each node by its name."""
        finalists = {key: self._alone(calls[0]) for key, calls in self._groups.items()}
        best_ns = self._time()
        for _ in range(ROUNDS):
            for key, calls in sorted(self._groups.items(), key=lambda group: -len(group[1])):
                for number in finalists[key][:FINALISTS]:
                    best_ns = self._try(calls, number, best_ns)
        return {
            self._lowered.nodes[call.node].name: Choice("cuda", call.algorithm, option.params, self._lowered.precision)
            for call, option in zip(self._lowered.calls, self._chosen, strict=True)
            if len(call.options) > 1
        }

    def _try(self, calls: Sequence[int], number: int, best_ns: float) -> float:
        """Keep an option of equal calls if the segment is faster with it. Returns the segment's nanoseconds then."""
        before = [self._chosen[at] for at in calls]
        if self._lowered.calls[calls[0]].options[number] is before[0]:
            return best_ns
        for at in calls:
            self._chosen[at] = self._lowered.calls[at].options[number]
        if (taken_ns := self._time()) < best_ns * GAIN:
            return taken_ns
        for at, option in zip(calls, before, strict=True):
            self._chosen[at] = option
        return best_ns

    def _alone(self, at: int) -> list[int]:
        """Return the numbers of a call's options, the fastest by itself first."""
        options = self._lowered.calls[at].options[: self._most]
        taken = [(self._gpu.time_launch_ns(option.launch, self._addresses), n) for n, option in enumerate(options)]
        return [n for _, n in sorted(taken)]

    def _time(self) -> float:
        """Return the nanoseconds of the segment as it is chosen now."""
        launches: tuple[Launch, ...] = tuple(option.launch for option in self._chosen)
        with (
            self._gpu.context.stream() as stream,
            Replay(self._gpu.kernels, Program(launches), self._addresses, stream) as replay,
        ):
            return self._gpu.time_graph_ns(replay.launch, stream, repeats=15)

    def close(self) -> None:
        """Free the memory on the GPU."""
        self._scratch.close()
        self._segment.close()


def _problem(call: Call) -> object:
    """Return what equal problems share: the kernels that could compute it, and what these are told."""
    return call.algorithm, tuple((option.launch.kernel.name, bytes(option.launch.told)) for option in call.options)


def tune(lowered: LoweredSegment, gpu: Gpu, most: int = MOST) -> None:
    """Choose the fastest option of every launch of a segment. most: how many of a launch are tried, the likely best."""
    with gpu.lock:
        contest = Contest(lowered, gpu, most)
        try:
            lowered.choose(contest.run())
        finally:
            contest.close()
