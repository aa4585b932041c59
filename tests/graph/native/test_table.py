"""The table finds the native rules in their folder, one for each op."""

from types import ModuleType

import pytest

from graph.native.rules import conv, table
from kernels.errors import EdgewiseError


def module(name: str, *ops: str) -> ModuleType:
    """Return a module with a rule for each of some ops."""
    made = ModuleType(name)
    made.__dict__["RULES"] = dict.fromkeys(ops, conv.RULES["Conv"])
    return made


def test_every_family_is_in_the_table():
    assert table.RULES["Conv"] is conv.RULES["Conv"]


def test_modules_without_rules_are_passed_over():
    assert set(table.merge([ModuleType("helpers"), module("a", "Conv", "Gemm")])) == {"Conv", "Gemm"}


def test_two_rules_for_one_op_raise():
    with pytest.raises(EdgewiseError, match=r"^Conv: it has rules in a and b, need one$"):
        table.merge([module("a", "Conv"), module("b", "Conv")])


def test_every_rule_says_in_which_module_it_lowers():
    """A build hashes that module (`scheduler.build`), so `lower` is a function of it."""
    assert all(rule.lower.__module__.startswith("graph.native.rules.") for rule in table.RULES.values())
