"""Sessions of models in half precision: one native segment that computes in float32, unless the caller asks for numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from kernels.errors import ShapeError
from kernels.half import is_half
from kernels.spec import Array
from profiler.counting.counts import profile
from scheduler.planning.subject import Subject
from scheduler.session import Session
from tests.graph.dynamic.build import DynamicModel
from tests.graph.dynamic.images import image_model
from tests.graph.dynamic.tokens import token_model
from tests.graph.halves import BF16, DTYPES, F16, by_onnx_runtime, conv_net, decoder, halves, in_half, in_single, singles
from tests.graph.oracle import FLOAT
from tests.graph.random_models import random_feeds, random_models

EACH = pytest.mark.parametrize("code", [F16, BF16], ids=["f16", "bf16"])


def islands() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A decoder whose norms and softmax are in float32."""
    return decoder(islands=True)


NETWORKS = pytest.mark.parametrize("network", [conv_net, decoder, islands])
ONCE = {F16: 1e-3, BF16: 8e-3}  # of the largest number, where results and what is kept of a decoder are rounded
TOLERANCE = {F16: 4e-3, BF16: 4e-2}  # of the largest number; of the rounding of each value between ops in numpy


def assert_near(found: dict[str, Array], wanted: dict[str, Array], tolerance: float) -> None:
    """Assert that outputs have the same names and shapes, and differ by at most `tolerance` × the largest number."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape, name
        scale = np.abs(array.astype(float)).max(initial=1)
        np.testing.assert_allclose(found[name].astype(float) / scale, array.astype(float) / scale, 0, tolerance, err_msg=name)


def algorithms(session: Session, feeds: dict[str, Array]) -> set[str]:
    return {step.algorithm.partition("/")[0] for step in session.executor(feeds).steps}


@EACH
@NETWORKS
def test_network_is_one_native_segment(network, code) -> None:
    proto, feeds = network()
    program = Session(in_half(proto, code), backend="native", threads=1).executor(halves(feeds, code))._program
    assert (len(program._segments), program.uses_numpy) == (1, False)


@EACH
def test_islands_of_float32_hide_no_attention(code) -> None:
    proto, feeds = islands()
    steps = Session(in_half(proto, code), backend="native", threads=1).executor(halves(feeds, code)).steps
    assert [step.node.op for step in steps].count("Attention") == 2


@EACH
@NETWORKS
def test_network_agrees_with_numpy(network, code) -> None:
    proto, feeds = network()
    halved, given_feeds = in_half(proto, code), halves(feeds, code)
    in_numpy = Session(halved, backend="numpy", threads=1)
    found = Session(halved, backend="native", threads=2).run(given_feeds)
    assert_near(found, in_numpy.run(given_feeds), TOLERANCE[code])
    assert any(is_half(spec.dtype) for spec in in_numpy.executor(given_feeds).specs.values() if spec is not None)
    assert "native" not in algorithms(in_numpy, given_feeds)


@EACH
def test_results_are_those_of_float32_rounded_once(code) -> None:
    proto, feeds = conv_net()
    halved, given_feeds = in_half(proto, code), halves(feeds, code)
    (exact,) = Session(in_single(proto, code), backend="native", threads=1).run(singles(given_feeds)).values()
    (found,) = Session(halved, backend="native", threads=1).run(given_feeds).values()
    np.testing.assert_array_equal(found.astype(float), exact.astype(DTYPES[code]).astype(float))


@NETWORKS
def test_float16_agrees_with_onnx_runtime(network) -> None:
    proto, feeds = network()
    wanted = by_onnx_runtime(in_half(proto, F16), halves(feeds, F16))
    assert wanted is not None
    assert_near(Session(in_half(proto, F16), backend="native", threads=1).run(halves(feeds, F16)), wanted, TOLERANCE[F16])


@EACH
def test_cache_of_halves_grows_in_place(code) -> None:
    halved, feeds = in_half(decoder()[0], code), decoder()[1]
    in_native, in_numpy = (Session(halved, backend=backend, threads=1) for backend in ("native", "numpy"))
    states = in_native.state(), in_numpy.state()
    for step in range(6):
        ids = feeds["ids"] if step == 0 else feeds["ids"][:, step % 3 : step % 3 + 1]
        found, wanted = (each.run({"ids": ids}, state=state) for each, state in zip((in_native, in_numpy), states, strict=True))
        assert_near(found, wanted, TOLERANCE[code])
    assert states[0]._lowered.lowering.graph.kept.keys() == {f"present.{n}.{part}" for n in range(2) for part in "kv"}
    assert_near(states[0].values(), states[1].values(), TOLERANCE[code])


@EACH
def test_profile_describes_the_file(code) -> None:
    for network in (conv_net, decoder):
        proto, feeds = network()
        shapes = {name: array.shape for name, array in feeds.items()}
        single, halved = profile(proto, shapes=shapes), profile(in_half(proto, code), shapes=shapes)
        floats = sum(int(np.prod(each.dims)) for each in proto.graph.initializer if each.data_type == FLOAT)
        assert (halved.macs, halved.flops, halved.params) == (single.macs, single.flops, single.params)
        assert single.param_bytes - halved.param_bytes == 2 * floats


@EACH
def test_every_step_that_is_planned_for_halves_can_run_natively(code) -> None:
    proto, feeds = conv_net()
    halved = in_half(proto, code)
    session = Session(halved, backend="native", threads=1)
    subject = Subject.of(session.model, {"x": feeds["x"].shape}, backend="native")
    assert all(found.load is not None for found in (options[0] for options in subject.options(1) if options))
    assert not any(is_half(spec.dtype) for name, spec in subject.specs.items() if name not in ("x", "y"))


def assert_near_float32(proto: onnx.ModelProto, code: int, all_feeds: Iterable[dict[str, Array]]) -> None:
    """Assert that a model in half precision computes what it would in float32 with the same weights.

    The numpy backend is no measure here: a network may multiply its rounding of every value between ops.
    """
    in_halves = Session(in_half(proto, code), backend="native", threads=2)
    exact = Session(in_single(proto, code), backend="native", threads=2)
    for feeds in all_feeds:
        try:
            wanted = exact.run(singles(feeds))
        except ShapeError:  # there are sizes that an exporter did not think of
            with pytest.raises(ShapeError):
                in_halves.run(feeds)
        else:
            assert_near(in_halves.run(feeds), wanted, ONCE[code])


@EACH
def test_plan_for_numpy_keeps_halves(code) -> None:
    proto, feeds = conv_net()
    halved, given_feeds = in_half(proto, code), halves(feeds, code)
    in_numpy = Session(halved, backend="numpy", threads=1)
    wanted = in_numpy.run(given_feeds)
    following = Session(halved, backend="auto", threads=1, plan=in_numpy.plan)
    np.testing.assert_array_equal(following.run(given_feeds)["y"].astype(float), wanted["y"].astype(float))


@EACH
def test_plan_counts_the_constants_of_the_file(code) -> None:
    proto, feeds = conv_net()
    halved = in_half(proto, code)
    single, half = (Session(model, backend="native", threads=1) for model in (proto, halved))
    single.run(feeds)
    half.run(halves(feeds, code))
    assert half.plan.param_bytes < single.plan.param_bytes


@EACH
@settings(max_examples=25, deadline=None)
@given(proto=random_models(), feeds=random_feeds())
def test_random_model_agrees_with_float32(code, proto, feeds) -> None:
    assert_near_float32(proto, code, [halves(feeds, code)])


@EACH
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [image_model, token_model], ids=["images", "tokens"])
def test_open_dimensions(kind, seed, code) -> None:
    made: DynamicModel = kind(seed)
    rng = np.random.default_rng(seed)
    assert_near_float32(made.proto, code, [halves(made.feeds(sizes, rng), code) for sizes in made.sizes])
