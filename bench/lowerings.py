"""`python -m bench.lowerings FILE… --dim seq=1:513` counts how often a session lowers models that it runs at many sizes.

Sizes of a dimension are a number or a range, whose end is not among them. Ranges advance together; dimensions that are not named
are 1. It builds what runs need and runs nothing. With EDGEWISE_DEBUG=1 standard error says why a model is lowered again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from graph.shapes import bind
from scheduler.session import Session


def main(arguments: Sequence[str]) -> None:
    """Count the lowerings of each file."""
    parser = argparse.ArgumentParser(prog="python -m bench.lowerings", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE|BEGIN:END", help="sizes of a dimension")
    given = parser.parse_args(arguments)
    wanted = dict(_sizes(text) for text in given.dim)
    for path in given.files:
        count(path, wanted)


def _sizes(text: str) -> tuple[str, range]:
    name, _, sizes = text.partition("=")
    begin, colon, end = sizes.partition(":")
    return name, range(int(begin), int(end) if colon else int(begin) + 1)


def count(path: str, wanted: Mapping[str, range]) -> None:
    """Print how many lowerings a model needs for these sizes in order, and for which ones."""
    session = Session(path, 1)
    graph, kept = session.model.graph, session._lowerings._kept
    dims = {dim: wanted.get(dim, range(1, 2)) for port in graph.inputs for dim in port.dims or () if isinstance(dim, str)}
    needed, rounds = [], max(map(len, dims.values()), default=1)
    for turn in range(rounds):
        sizes = {dim: each[min(turn, len(each) - 1)] for dim, each in dims.items()}
        before = list(kept)
        specs = bind(graph, None, sizes)
        session.executor({name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()})
        if kept[-1] not in before:
            needed.append(" ".join(f"{dim}={size}" for dim, size in sizes.items() if len(dims[dim]) > 1))
    print(f"{path}: {len(needed)} lowerings for {rounds} sets of sizes, made at {', '.join(needed)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
