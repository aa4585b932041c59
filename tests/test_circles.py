"""The check for import circles finds all circles and reports nothing else."""

from pathlib import Path

from tests.circles import find_circles, import_graph


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def found(root: Path) -> list[list[str]]:
    return find_circles(import_graph(root, ["house"]))


def test_a_circle_of_three_files_is_named_once(tmp_path: Path) -> None:
    tree(
        tmp_path,
        house__hall="from house.kitchen import cook",
        house__kitchen="def cook():\n    import house.cellar",
        house__cellar="from . import hall",
        house__attic="from house import hall",
    )
    assert found(tmp_path) == [["house.cellar", "house.hall", "house.kitchen"]]


def test_two_circles_through_one_file_are_both_named(tmp_path: Path) -> None:
    tree(tmp_path, house__a="import house.b\nimport house.c", house__b="import house.a", house__c="import house.a")
    assert found(tmp_path) == [["house.a", "house.b"], ["house.a", "house.c"]]


def test_a_package_that_re_exports_its_modules_is_no_circle(tmp_path: Path) -> None:
    package = tree(tmp_path, house__a="from house.b import x", house__b="x = 1") / "house" / "__init__.py"
    package.write_text("from house.a import x\nfrom house.b import x as y")
    assert found(tmp_path) == []


def test_a_module_that_imports_its_own_package_is_a_circle(tmp_path: Path) -> None:
    package = tree(tmp_path, house__a="from house import x") / "house" / "__init__.py"
    package.write_text("from .a import x")
    assert found(tmp_path) == [["house", "house.a"]]


def test_imports_for_type_checkers_count(tmp_path: Path) -> None:
    typed = "import typing\nif typing.TYPE_CHECKING:\n    from house.b import B"
    tree(tmp_path, house__a=typed, house__b="from house.a import A")
    assert found(tmp_path) == [["house.a", "house.b"]]
