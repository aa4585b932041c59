"""Einsums become products and views, which compute the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.passes.einsums import expand_einsums
from tests.graph.passes.checks import build, node, ops, optimised, random, rewritten

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1}


def einsum(equation, *shapes):
    names = [f"x{n}" for n in range(len(shapes))]
    return build([node("Einsum", names, ["y"], equation=equation)], (), dict(zip(names, shapes, strict=True)))


@pytest.mark.parametrize(
    ("equation", "shapes", "wanted"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], ["MatMul"]),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], ["Transpose", "MatMul"]),
        ("bqhd,bkhd->bhqk", [(2, 4, 3, 5), (2, 6, 3, 5)], ["Transpose", "Transpose", "MatMul"]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], ["MatMul"]),
        ("btd,dhk->bthk", [(2, 3, 4), (4, 5, 6)], ["Reshape", "Reshape", "MatMul", "Reshape"]),
        ("ijk->kij", [(2, 3, 4)], ["Transpose"]),
        ("ijk->j", [(2, 3, 4)], ["ReduceSum"]),
        ("ij->ij", [(2, 3)], ["Identity"]),
        ("bc,bchw->bchw", [(2, 3), (2, 3, 4, 5)], ["Reshape", "Reshape", "Mul", "Reshape"]),
        ("i,i->", [(4,), (4,)], ["Reshape", "Reshape", "MatMul", "Reshape"]),
        ("i,j->ij", [(2,), (3,)], ["Reshape", "Reshape", "Mul"]),
    ],
)
def test_einsums_of_every_form(equation, shapes, wanted) -> None:
    assert ops(rewritten(einsum(equation, *shapes), expand_einsums)) == wanted


@pytest.mark.parametrize(
    ("equation", "shapes"), [("ii->i", [(3, 3)]), ("ij,jk->ik", [(2, 1), (3, 4)]), ("ij,jk->ik", [(2, 0), (0, 3)])]
)
def test_einsums_that_stay(equation, shapes) -> None:
    assert ops(rewritten(einsum(equation, *shapes), expand_einsums)) == ["Einsum"]


def test_attention_that_is_written_as_einsums_is_found() -> None:
    shape = (2, 8, 3, 4)
    nodes = [
        node("Einsum", ["q", "k"], ["s"], equation="bqhd,bkhd->bhqk"),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("Einsum", ["p", "v"], ["y"], equation="bhqk,bkhd->bqhd"),
    ]
    after = optimised(build(nodes, (), dict.fromkeys("qkv", shape))).graph
    assert "Attention" in ops(after)
    assert "Einsum" not in ops(after)


def test_a_value_that_a_model_names_alike_stays_its_own() -> None:
    nodes = [node("Neg", ["x"], ["e/MatMul0"]), node("Einsum", ["e/MatMul0", "w"], ["y"], equation="ij,jk->k", name="e")]
    assert ops(rewritten(build(nodes, [random("w", 4, 3)]), expand_einsums))[0] == "Neg"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_einsum(data) -> None:
    terms = [data.draw(st.permutations("abcde"))[: data.draw(st.integers(1, 4))] for _ in range(data.draw(st.integers(1, 3)))]
    used = sorted({label for term in terms for label in term})
    output = data.draw(st.permutations(used))[: data.draw(st.integers(0, len(used)))]
    equation = f"{','.join(''.join(term) for term in terms)}->{''.join(output)}"
    shapes = [tuple(SIZES[label] for label in term) for term in terms]
    assert "Einsum" not in ops(rewritten(einsum(equation, *shapes), expand_einsums))
