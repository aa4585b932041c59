"""Graphs run call by call, each kernel as a function of its own: how sets of another architecture are tested, in an emulator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graph.choice import Choice
from graph.ir import SEGMENT, Graph, Specs
from graph.native.arena import lay_out
from graph.native.constants import ConstantCache
from graph.native.engine import Native
from graph.native.facts import Facts, known
from graph.native.partition import Part
from graph.native.place import Storage
from graph.native.segment import complete_choices, lower
from kernels.native.memory.buffers import aligned
from kernels.native.target.isa import Isa
from kernels.spec import Array
from tests.graph.interpreter import run_node
from tests.kernels.native.reference import run_kernel


def run_call_by_call(
    graph: Graph, specs: Specs, isa: Isa, choices: Mapping[str, Choice], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Run native nodes over poisoned memory on that instruction set, the others in numpy, and return the graph's outputs."""
    rest, parts = Native(isa, cache=None).parts(graph, specs, choices)
    values: dict[str, Array] = {**graph.constants, **feeds}
    for node in rest.nodes:
        if node.op == SEGMENT:
            values |= _run_part(parts[node.name], Facts(specs, graph.constants, isa), choices, values)
        else:
            values.update(zip(node.outputs, run_node(node, values), strict=False))
    return {port.name: values[port.name] for port in graph.outputs}


def _run_part(part: Part, facts: Facts, choices: Mapping[str, Choice], values: Mapping[str, Array]) -> dict[str, Array]:
    calls = list(lower(part, facts, ConstantCache(), complete_choices(part, facts, choices)).calls)
    arena = lay_out(calls, len(part.nodes))
    own = _poisoned(arena.nbytes)
    inputs = {name: np.ascontiguousarray(values[name]) for name in part.inputs}
    specs = {name: known(facts.specs, name) for name in part.outputs}
    outputs = {name: _poisoned(spec.nbytes) for name, spec in specs.items()}
    written = {call.arguments[name][0] for call in calls for name in call.writes}

    def memory(storage: Storage) -> Array:
        if storage.constant is not None:
            return _bytes(storage.constant.array)
        if storage.table is not None:
            return _bytes(storage.table.words)
        if storage.port:
            return outputs[storage.port] if storage in written else _bytes(inputs[storage.port])
        return own[arena.offsets[storage] :]

    for call in calls:
        run_kernel(
            call.kernel, facts.isa, **{name: memory(storage)[offset:] for name, (storage, offset) in call.arguments.items()}
        )
    return {name: outputs[name].view(spec.dtype).reshape(spec.shape) for name, spec in specs.items()}


def _poisoned(nbytes: int) -> Array:
    memory = aligned(nbytes)
    memory[:] = 0xFF
    return memory


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
