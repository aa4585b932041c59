"""Indexes say which module of a folder defines a name, and do not count where modules were added or removed."""

from types import ModuleType

import pytest

from kernels import index, ops
from kernels.ops import _index as ops_index
from kernels.registry import home, operators


@pytest.fixture
def package(tmp_path) -> ModuleType:
    """Make a package with two modules and an index."""
    for name in ("a", "b", "_index"):
        (tmp_path / f"{name}.py").touch()
    made = ModuleType("box")
    made.__path__ = [str(tmp_path)]
    return made


def test_homes_are_modules_of_the_package(package):
    assert index.homes(package, {"a": "X Y", "b": ""}) == {"X": "box.a", "Y": "box.a"}


@pytest.mark.parametrize("stale", [{"a": "X"}, {"a": "X", "b": "", "c": "Z"}], ids=["added", "removed"])
def test_an_index_of_other_modules_does_not_count(package, stale):
    assert index.homes(package, stale) == {}


def test_what_is_written_is_what_is_read(package):
    known = {"Y": "box.b", "X": "box.b"}
    scope: dict[str, dict[str, str]] = {}
    exec(index.written(known, package), scope)
    assert scope["DEFINES"] == {"a": "", "b": "X Y"}
    assert index.homes(package, scope["DEFINES"]) == known


def test_the_index_of_operators_is_complete():
    assert index.homes(ops, ops_index.DEFINES) == {op: home(op) for op in operators()}
