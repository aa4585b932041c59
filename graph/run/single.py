"""Runs of a graph that is one segment of a backend: forests, and any small network whose nodes all have a native form.

Such a run may take a few microseconds, less than the general way around it (`graph.run.prepared`), which looks at deadlines,
counts memory that steps allocate, and sets up numpy. None of this is needed where nobody can end the run and no step is numpy's.
What the segment and the outputs take is known, and counted when the graph is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graph.backend import Segment
from graph.ir import Port
from kernels.spec import Array, Spec

_NOT_STOPPED = np.zeros(1, np.int32)


class SingleSegment:
    """A segment whose inputs are those of the graph, and whose outputs are all outputs of the graph.

    Args: ports: of the graph's inputs, with the shapes that it is prepared for. inputs, outputs: of the segment, in order, the
          latter with what they are allocated as. names: of the graph's outputs, in order.
    """

    def __init__(
        self,
        segment: Segment,
        arena: Array,
        threads: int,
        ports: Sequence[Port],
        inputs: Sequence[str],
        outputs: Mapping[str, Spec],
        names: Sequence[str],
    ) -> None:
        self._segment, self._arena, self._threads = segment, arena, threads
        declared = {port.name: port for port in ports}
        self._ports = [(name, declared[name].dtype, declared[name].dims) for name in inputs]
        self._made = [(spec.shape, spec.dtype) for spec in outputs.values()]
        self._returned = [(name, list(outputs).index(name)) for name in names]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array] | None:
        """Run once and return the outputs by name, in new memory. None, and nothing is done, for feeds that need a closer look.

        Raises: IndexRangeError as `Segment.run` does.
        """
        if len(feeds) != len(self._ports):
            return None
        given = []
        for name, dtype, dims in self._ports:
            array = feeds.get(name)
            if type(array) is not np.ndarray or (array.dtype is not dtype and array.dtype != dtype) or array.shape != dims:
                return None
            flags = array.flags
            if not (flags.c_contiguous and flags.aligned):
                return None
            given.append(array)
        try:
            made = [np.empty(shape, dtype) for shape, dtype in self._made]
        except MemoryError:
            return None  # the general way says what needed it
        self._segment.run(self._arena, given, made, self._threads, _NOT_STOPPED)
        return {name: made[at] for name, at in self._returned}
