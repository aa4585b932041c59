"""The table finds the native rules in their folder, one for each op, and imports a module when its rule is looked up."""

import subprocess
import sys

import pytest

from graph.native import rules
from graph.native.rules import conv, elementwise, table
from graph.native.rules._index import DEFINES
from kernels.errors import EdgewiseError
from kernels.index import homes

RULE = conv.RULES["Conv"]


def test_every_family_is_in_the_table():
    assert table.RULES["Conv"] is conv.RULES["Conv"]


def test_ops_with_an_expression_have_the_rule_for_elementwise_ops():
    assert table.RULES["Sigmoid"] is elementwise.RULE


def test_rules_that_are_looked_up_are_those_of_all_modules():
    assert dict(table.RULES) == dict(table.all_rules())
    assert len(table.RULES) > 100


@pytest.mark.parametrize("op", ["NonMaxSuppression", "If", "acme.Nope"])
def test_ops_without_a_native_form_have_no_rule(op: str):
    assert op not in table.RULES
    assert table.RULES.get(op) is None


def test_looking_up_a_rule_imports_its_module_alone():
    code = "import sys; from graph.native.rules.table import RULES; RULES['Conv']; RULES['Relu']; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "graph.native.rules.conv" in loaded
    assert not {"graph.native.rules.recurrent", "graph.native.rules.resize", "kernels.ops.recurrent"} & {*loaded}


def test_modules_that_no_index_lists_are_found(monkeypatch):
    """A family is added before its index is written."""
    monkeypatch.setattr(table, "DEFINES", {"conv": "Conv"})
    table._homes.cache_clear()
    table._rule.cache_clear()
    try:
        assert table.RULES["GridSample"].lower.__module__ == "graph.native.rules.grid_sample"
    finally:
        monkeypatch.undo()
        table._homes.cache_clear()
        table._rule.cache_clear()


def test_the_index_is_complete():
    assert homes(rules, DEFINES) == {op: module for module, made in table.families().items() for op in made}


def test_two_rules_for_one_op_raise():
    with pytest.raises(EdgewiseError, match=r"^Conv: it has rules in a and b, need one$"):
        table.merge([("a", {"Conv": RULE}), ("b", {"Conv": RULE})])


def test_every_rule_says_in_which_module_it_lowers():
    """A build hashes that module (`scheduler.build`), so `lower` is a function of it."""
    assert all(rule.lower.__module__.startswith("graph.native.rules.") for rule in table.RULES.values())
