"""Segments of a graph, run by `tests.graph.cuda.simulate`."""

import numpy as np

from graph.cuda.constants import DeviceConstants
from graph.cuda.facts import Facts
from graph.cuda.rules.table import refusal
from graph.cuda.segment import LoweredSegment
from graph.native.partition import Part
from graph.passes.optimise import optimise
from graph.shapes import bind
from tests.graph.cuda.simulate import Memory, run
from tests.kernels.cuda.fake import FakeCuda, fake_driver


def lower_graph(graph, precision, choices=None, shapes=None):
    """Return a whole graph, which must run on a GPU as one segment, lowered for a GPU that is not there."""
    made = optimise(graph, bind(graph, shapes or {}))
    facts = Facts(made.specs, made.graph.constants)
    refused = {node.name: refusal(node, facts) for node in made.graph.nodes}
    assert not any(refused.values()), {name: reason for name, reason in refused.items() if reason}
    inputs, outputs = (tuple(port.name for port in ports) for ports in (made.graph.inputs, made.graph.outputs))
    device = fake_driver(FakeCuda()).device()
    part = Part(made.graph.nodes, inputs, outputs)
    return LoweredSegment(part, facts, choices or {}, precision, device, DeviceConstants())


def simulate(lowered, feeds):
    """Return the results of a segment by name, computed launch by launch in one memory."""
    memory, layout = Memory(), lowered.lay_out()
    arena = memory.allocate(layout.arena_bytes)
    known = {}

    def address(storage, first):
        if storage in layout.offsets:
            return arena + layout.offsets[storage] + first
        if storage not in known:
            array = (
                lowered.constants.array(storage).reshape(-1)
                if storage in lowered.constants
                else np.zeros(storage.nbytes, np.uint8)
            )
            known[storage] = memory.allocate(array.nbytes)
            memory.write(known[storage], np.dtype(np.uint8), (1,), array.view(np.uint8))
        return known[storage] + first

    for name, place in lowered.inputs.items():
        if place.storage in layout.offsets:
            memory.write(address(place.storage, 0), place.storage.dtype, (1,), feeds[name].reshape(-1))
    for launch in lowered.launches:
        run(memory, launch, {name: address(*lowered.where[name]) for name in launch.names.values()})
    return {
        name: memory.view(
            address(place.storage, place.first_byte), place.storage.dtype, place.view.shape, place.view.strides
        ).copy()
        for name, place in lowered.outputs.items()
    }
