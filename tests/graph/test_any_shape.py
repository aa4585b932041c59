"""Random models with open dimensions on one session: every shape answers as ONNX Runtime does, in any order of shapes.

A failing test says its model. `EDGEWISE_TEST_SEEDS=1000:2000` runs other seeds than the few of the suite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from graph.native.segment import Segment
from kernels.spec import Array
from scheduler.session import Session
from tests.graph.dynamic.build import DynamicModel
from tests.graph.dynamic.images import image_model
from tests.graph.dynamic.tokens import token_model
from tests.graph.oracle import assert_agrees

FIRST, _, END = os.environ.get("EDGEWISE_TEST_SEEDS", "0:8").partition(":")
SEEDS = range(int(FIRST), int(END))
TOLERANCE = 1e-4  # of the largest number: Winograd's sums are the least exact
MODELS = {"images": image_model, "tokens": token_model}
REFUSED = (refusals.Fail, refusals.InvalidArgument, refusals.RuntimeException)


class Reference:
    """What ONNX Runtime answers, without graph optimisations."""

    def __init__(self, made: DynamicModel) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(made.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return its outputs; None for sizes that it does not take."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except REFUSED:
            return None


@contextmanager
def shown(made: DynamicModel) -> Iterator[None]:
    """Add the model to what an error says."""
    try:
        yield
    except Exception as error:
        error.add_note(str(made))
        raise


def kernels_of(session: Session, feeds: Mapping[str, Array]) -> list[str]:
    """Return the kernels that a session runs for these feeds, in order. The same kernels give the same bits."""
    segments = session.executor(feeds)._program._segments.values()
    return [call.kernel.name for segment in segments if isinstance(segment, Segment) for call in segment.calls]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_one_session_answers_all_shapes(kind: str, seed: int) -> None:
    """As ONNX Runtime does, with the same bits on two threads, and with those of a session that has met this shape alone."""
    made = MODELS[kind](seed)
    rng = np.random.default_rng(seed)
    with shown(made):
        reference, one, two = Reference(made), Session(made.proto, 1), Session(made.proto, 2)
        alone = int(rng.integers(len(made.sizes)))
        for number, sizes in enumerate(made.sizes):
            feeds = made.feeds(sizes, rng)
            wanted = reference.run(feeds)
            if wanted is None:
                continue
            found = one.run(feeds)
            assert_agrees(found, wanted, TOLERANCE)
            assert_agrees(two.run(feeds), found, tolerance=0)
            if number == alone:
                fresh = Session(made.proto, 1)
                answer = fresh.run(feeds)
                same = kernels_of(fresh, feeds) == kernels_of(one, feeds)
                assert_agrees(found, answer, 0 if same else TOLERANCE)


@pytest.mark.parametrize("kind", MODELS)
def test_threads_that_use_a_session_with_different_shapes(kind: str) -> None:
    made = MODELS[kind](int(FIRST))
    rng = np.random.default_rng(1)
    with shown(made):
        reference, session = Reference(made), Session(made.proto, 2)
        some = [made.feeds(sizes, rng) for sizes in made.sizes]
        cases = [(feeds, wanted) for feeds in some if (wanted := reference.run(feeds)) is not None]

        def work(first: int) -> None:
            for turn in range(3 * len(cases)):
                feeds, wanted = cases[(first + turn) % len(cases)]
                assert_agrees(session.run(feeds), wanted, TOLERANCE)

        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(work, first) for first in range(4)]:
                done.result()
