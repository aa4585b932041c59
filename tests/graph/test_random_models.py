"""The executor, the interpreter and ONNX Runtime agree on random models."""

import numpy as np
import onnx
from hypothesis import given, settings

from graph.formats.registry import read
from tests.graph.interpreter import interpret
from tests.graph.oracle import assert_agrees, build, check
from tests.graph.random_models import random_feeds, random_models


@given(random_models(), random_feeds())
@settings(max_examples=100, deadline=None)
def test_random_model_agrees_with_onnx_runtime(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    check(proto, feeds)


@given(random_models(), random_feeds())
@settings(max_examples=40, deadline=None)
def test_random_model_agrees_with_the_interpreter_to_the_bit(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    assert_agrees(build(proto).run(feeds), interpret(read(proto).graph, feeds), tolerance=0)
