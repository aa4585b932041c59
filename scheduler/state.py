"""What runs of a model hand on from one to the next: the keys and values of a decoder, which grow in place, or hidden states."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graph.budget import RunBudget
from graph.errors import FeedError
from graph.growing import Growing, find_growing
from graph.ir import Graph, Port
from graph.run.bounds import RunBounds
from graph.run.executor import Executor
from graph.run.feeds import check_feeds
from graph.shapes import bind
from kernels.spec import Array
from scheduler.lowering_cache import Found

LEAST_ROOM = 64  # elements of the axis along which a value grows that there is memory for
GROWTH = 2  # times what is needed: memory is allocated and copied anew so seldom that a step costs what its work costs


Lower = Callable[[Mapping[str, tuple[int, ...]], Sequence[Growing], int], Found]


class State:
    """The values that one sequence of runs hands on. Made by `Session.state`, passed to `Session.run`; one run at a time.

    A run that fails changes nothing.

    Args: graph: of the model. pairs, start: as of `Session.state`. lower: returns a lowering in which these values grow, with
          room for so much, and its sizes for these input shapes. budget: returns a new budget of memory.
    """

    def __init__(
        self,
        graph: Graph,
        pairs: Mapping[str, str] | None,
        start: Mapping[str, Array] | None,
        lower: Lower,
        budget: Callable[[], RunBudget],
    ) -> None:
        self._graph, self._lower, self._new_budget = graph, lower, budget
        self._ports = {port.name: port for port in graph.inputs}
        found = find_growing(graph)
        if pairs is None and not found:
            raise FeedError("state: no output of this model appends to an input, name the pairs: {input: output}")
        self._outputs = dict(pairs) if pairs is not None else {each.input: each.output for each in found}
        self._growing = {each.input: each for each in found if self._outputs.get(each.input) == each.output}
        self._check(start or {})
        self._start = dict(start or {})
        self._values: dict[str, _Growable] = {}
        self._others: dict[str, Array] = {}
        self._lowered: Found | None = None
        self._executor: Executor | None = None
        self._room = 0
        self._budget = budget()
        self._lock = threading.Lock()
        weakref.finalize(self, self._budget.release).atexit = False
        self.reset()

    def _check(self, start: Mapping[str, Array]) -> None:
        """Raise FeedError for names that are no inputs or outputs, and for values that need a start."""
        outputs = {port.name for port in self._graph.outputs}
        for name, output in self._outputs.items():
            if name not in self._ports:
                raise FeedError(f"state: input {name!r} does not exist, the model has {sorted(self._ports)}")
            if output not in outputs:
                raise FeedError(f"state: output {output!r} does not exist, the model has {sorted(outputs)}")
            if name not in self._growing and name not in start:
                raise FeedError(f"state: input {name!r} does not grow, give its first value in start")
        if foreign := sorted(set(start) - set(self._outputs)):
            raise FeedError(f"state: start has {foreign[0]!r}, which is no input in the state")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that it stands for."""
        return tuple(self._outputs)

    @property
    def length(self) -> int:
        """Length of the values that grow, along the axis along which they do; 0 where none do."""
        return max((value.length for value in self._values.values()), default=0)

    def values(self) -> dict[str, Array]:
        """Return copies of all values by the names of their inputs."""
        with self._lock:
            return {name: np.array(array) for name, array in self._arrays().items()}

    def reset(self) -> None:
        """Go back to the start."""
        with self._lock:
            self._values = {name: _Growable(self._growing[name].axis) for name in self._growing}
            for name, array in self._start.items():
                if name in self._growing:
                    self._values[name].set(array, 0)
                else:
                    self._others[name] = np.array(array)
            self._room = 0

    def truncate(self, length: int) -> None:
        """Forget what was appended behind that length. Raises FeedError where it is longer than what there is."""
        with self._lock:
            if not 0 <= length <= self.length:
                raise FeedError(f"state: length is {length}, need one from 0 to {self.length}")
            for value in self._values.values():
                value.length = min(value.length, length)

    def run(self, feeds: Mapping[str, Any], bounds: RunBounds) -> dict[str, Array]:
        """Run once, as `Session.run` with this state does."""
        if given := sorted(set(feeds) & set(self._outputs)):
            raise FeedError(f"{given[0]}: the state stands for this input, no feed is needed")
        ports = [port for port in self._graph.inputs if port.name not in self._outputs]
        with self._lock:
            arrays = check_feeds(ports, feeds)
            self._begin({port.name: port for port in ports}, arrays)
            shapes = {name: array.shape for name, array in (*arrays.items(), *self._arrays().items())}
            bind(self._graph, shapes)
            executor, found = self._prepared(shapes)
            kept = {each.input: self._values[each.input].memory for each in found.lowering.graph.kept.values()}
            others = {name: np.ascontiguousarray(array) for name, array in self._arrays().items() if name not in kept}
            outputs = executor.run({**arrays, **others}, bounds, kept)
            self._take(outputs, found)
            return outputs

    def _arrays(self) -> dict[str, Array]:
        """Return all values by the names of their inputs; those that grow as views of their memory."""
        return {name: self._values[name].array if name in self._values else self._others[name] for name in self._outputs}

    def _begin(self, ports: Mapping[str, Port], arrays: Mapping[str, Array]) -> None:
        """Make empty values of the shapes that follow from the feeds, where there is none yet."""
        empty = [name for name, value in self._values.items() if not value.is_made]
        if not empty:
            return
        sizes = {
            dim: size
            for name, array in arrays.items()
            for dim, size in zip(ports[name].dims or (), array.shape, strict=False)
            if isinstance(dim, str)
        }
        for name in empty:
            port, axis = self._ports[name], self._growing[name].axis
            shape = [
                0 if at == axis else sizes.get(dim, dim) if isinstance(dim, str) else dim
                for at, dim in enumerate(port.dims or ())
            ]
            if unknown := [dim for dim in shape if not isinstance(dim, int)]:
                raise FeedError(
                    f"state: input {name!r} has an open dimension {unknown[0]!r} that no feed has, give its first value"
                )
            self._values[name].set(np.zeros([int(dim or 0) for dim in shape], port.dtype), 0)

    def _prepared(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Executor, Found]:
        """Return the executor for these shapes, with memory enough for what the run appends."""
        found = self._lowering(shapes)
        needed = self._needed(found)
        if needed > self._room:
            self._grow(GROWTH * needed)
            found = self._lowering(shapes)
        known = self._lowered is not None and self._lowered.lowering is found.lowering
        if not (known and self._executor is not None and self._executor.resize(found.sizes)):
            self._executor = None
            self._executor = Executor.of(found.lowering.graph, found.sizes, self._new_budget())
        self._lowered = found
        return self._executor, found

    def _lowering(self, shapes: Mapping[str, tuple[int, ...]]) -> Found:
        if self._room < LEAST_ROOM and self._values:
            self._grow(LEAST_ROOM)
        return self._lower(shapes, tuple(self._growing.values()), self._room)

    def _needed(self, found: Found) -> int:
        """Return the longest that a value will be after the run."""
        lengths = []
        for each in self._growing.values():
            spec = found.lowering.graph.specs.get(each.output)
            lengths.append(self._values[each.input].length if spec is None else found.sizes.of(spec.shape[each.axis]))
        return max(lengths, default=0)

    def _grow(self, room: int) -> None:
        """Make room for that length in every value that grows."""
        room = max(room, GROWTH * self.length, LEAST_ROOM)
        new_bytes = sum(value.bytes_with(room) for value in self._values.values())
        self._budget.release()
        self._budget.keep(new_bytes, f"{self._graph.name}: values that grow, with room for {room}")
        for value in self._values.values():
            value.grow(room)
        self._room = room

    def _take(self, outputs: dict[str, Array], found: Found) -> None:
        """Take the next values out of the outputs; those that grew in place have them already."""
        kept = found.lowering.graph.kept
        for name, output in self._outputs.items():
            growing = self._growing.get(name)
            if output in kept and growing is not None:
                spec = found.lowering.graph.specs[output]
                self._values[name].length = 0 if spec is None else found.sizes.of(spec.shape[growing.axis])
            elif growing is not None:
                self._values[name].set(outputs.pop(output), self._room)
            else:
                self._others[name] = outputs.pop(output)


class _Growable:
    """A value in memory that has room for more of it along one axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self.memory = np.empty(0)
        self.length = 0
        self.is_made = False

    @property
    def array(self) -> Array:
        """The value, a view of the memory."""
        return self.memory[self._until(self.length)]

    def _until(self, length: int) -> tuple[slice, ...]:
        return (slice(None),) * self._axis + (slice(length),)

    def set(self, array: Array, room: int) -> None:
        """Take a value, copied into memory with so much room."""
        self.length, self.is_made = array.shape[self._axis], True
        room = max(room, self.length)
        shape = list(array.shape)
        shape[self._axis] = room
        if self.memory.shape != tuple(shape) or self.memory.dtype != array.dtype:
            self.memory = np.zeros(shape, array.dtype)
        self.memory[self._until(self.length)] = array

    def bytes_with(self, room: int) -> int:
        """Return the bytes of memory with so much room."""
        others = (size for axis, size in enumerate(self.memory.shape) if axis != self._axis)
        return math.prod(others) * room * self.memory.itemsize if self.is_made else 0

    def grow(self, room: int) -> None:
        """Move to memory with so much room."""
        self.set(np.array(self.array), room)
