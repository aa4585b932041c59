from __future__ import annotations

import pytest

from profiler.counting.conventions import CONVENTIONS, compare, convention_of, count_as
from profiler.counting.counts import profile
from profiler.errors import ConventionError
from tests.profiler import zoo
from tests.profiler.models import model, node, random


@pytest.fixture(scope="module")
def resnet50():
    return profile(zoo.resnet((3, 4, 6, 3), bottleneck=True))


@pytest.fixture(scope="module")
def vgg16():
    return profile(zoo.vgg16())


@pytest.fixture(scope="module")
def vit():
    return profile(zoo.vit_b_16())


def lenet():
    """Return the network in the documentation of paddle.flops."""
    nodes = [
        node("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", kernel_shape=[5, 5]),
        node("Relu", "c2", "r2"),
        node("MaxPool", "r2", "p2", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "p2", "f"),
        node("Gemm", "f w3 b3", "h1"),
        node("Gemm", "h1 w4 b4", "h2"),
        node("Gemm", "h2 w5 b5", "y"),
    ]
    shapes = {
        "w1": (6, 1, 3, 3), "b1": (6,), "w2": (16, 6, 5, 5), "b2": (16,), "w3": (400, 120), "b3": (120,), "w4": (120, 84),
        "b4": (84,),
        "w5": (84, 10), "b5": (10,),
    }  # fmt: skip
    return model(nodes, {"x": [1, 1, 28, 28]}, ["y"], {name: random(*shape) for name, shape in shapes.items()})


def test_paddle_prints_its_documented_example():
    counted = profile(lenet())
    assert count_as(counted, "paddle") == 347_560
    assert counted.params == 61_610


def test_fvcore_prints_its_documented_example():
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f v d", "y")]
    weights = {"w": random(10, 3, 1, 1), "b": random(10), "v": random(1000, 10), "d": random(10)}
    counted = profile(model(nodes, {"x": [1, 3, 10, 10]}, ["y"], weights))
    assert count_as(counted, "fvcore") == 13_000


def test_macs_and_flops_are_the_profile_s_own(resnet50):
    assert count_as(resnet50, "macs") == resnet50.macs
    assert count_as(resnet50, "flops") == resnet50.flops


def test_torch_counts_two_per_mac_and_nothing_else(resnet50, vit):
    assert count_as(resnet50, "torch") == 2 * 4_089_184_256
    assert count_as(vit, "torch") == 2 * 17_563_828_224


def test_batch_norm_conventions_differ_by_what_they_give_an_element(resnet50):
    elements = 11_113_984  # outputs of the 53 convolutions
    pooled = 2048 * 49
    assert count_as(resnet50, "fvcore") == resnet50.macs + 2 * elements + pooled
    assert count_as(resnet50, "thop") == resnet50.macs + 4 * elements + pooled + 2048
    assert count_as(resnet50, "paddle") == resnet50.macs + 2 * elements + pooled + 2048


def test_batch_norm_counts_the_same_folded_or_kept():
    folded, kept = (profile(zoo.mobilenet_v2(folded=state)) for state in (True, False))
    for name in ("fvcore", "thop", "ptflops", "torchinfo", "paddle", "torch", "macs"):
        assert count_as(folded, name) == count_as(kept, name), name


@pytest.mark.parametrize("name", ["ptflops", "torchinfo", "paddle"])
def test_convolution_biases_of_vgg16(vgg16, name):
    convolutions = 13_547_520
    linear = 4096 + 4096 + 1000 if name == "torchinfo" else 0
    assert count_as(vgg16, name) == 15_470_264_320 + convolutions + linear


def test_thop_drops_biases(vgg16):
    assert count_as(vgg16, "thop") == vgg16.macs


def test_module_hooks_do_not_see_attention(vit):
    for name in ("ptflops", "paddle"):
        assert count_as(vit, name) <= 17_563_828_224 - 715_327_488 + 196 * 768
    assert count_as(vit, "thop") < vit.macs


def test_ultralytics_doubles_thop(resnet50):
    assert count_as(resnet50, "ultralytics") == 2 * count_as(resnet50, "thop")


def test_torchinfo_counts_a_layer_once_per_batch_entry():
    counted = profile(zoo.bert_base())
    assert round(count_as(counted, "torchinfo") / 1e6) == 109


def test_compare_gives_every_convention(resnet50):
    assert compare(resnet50).keys() == CONVENTIONS.keys()
    assert len(CONVENTIONS) >= 6
    assert list(compare(resnet50, ["thop", "macs"])) == ["thop", "macs"]


def test_every_convention_says_its_unit_and_source():
    for convention in CONVENTIONS.values():
        assert convention.unit
        assert convention.source


def test_an_unknown_convention_names_those_there_are():
    with pytest.raises(ConventionError, match="'gflops' is unknown, need one of macs, flops, fvcore"):
        convention_of("gflops")
