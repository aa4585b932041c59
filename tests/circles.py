"""`python -m tests.circles` prints every circle of files that import one another, and fails if there is one.

Every import statement counts: at the top of a file, inside a function, and for type checkers only. Two files that name each
other's types have to be read and moved together, even if Python never imports one from the other. A file counts as importing the
modules that it names, not the packages above them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("edgewise.py", "app", "scheduler", "profiler", "graph", "kernels", "migrations", "bench", "docs", "examples", "tests")

Graph = Mapping[str, Iterable[str]]


def import_graph(root: Path, parts: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each module in these files and folders of `root`, the other modules among them that it imports."""
    files = {_module(path.relative_to(root)): path for part in parts for path in _python_files(root / part)}
    return {name: sorted(set(_imported(path, name, files)) - {name}) for name, path in files.items()}


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, name: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the known modules that the import statements of one file name."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from (found if found in known else base for found in submodules if found in known or base in known)


def find_circles(graph: Graph) -> list[list[str]]:
    """Return the shortest circle through every module that lies on one. Each circle is listed once, from its first name on."""
    found = set()
    for start in graph:
        if path := _way_back(graph, start):
            first = path.index(min(path))
            found.add((*path[first:], *path[:first]))
    return [list(circle) for circle in sorted(found)]


def _way_back(graph: Graph, start: str) -> list[str]:
    """Return the shortest way from a module back to itself, found breadth-first, or [] if there is none."""
    before = {start: start}
    ways = [start]
    for name in ways:
        for following in graph[name]:
            if following == start:
                path = [name]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return path[::-1]
            if following not in before:
                before[following] = name
                ways.append(following)
    return []


def main() -> int:
    """Print the import circles of this repository. Return 1 if there is one, else 0."""
    graph = import_graph(ROOT, PARTS)
    circles = find_circles(graph)
    for circle in circles:
        print("import circle: " + " → ".join([*circle, circle[0]]))  # noqa: T201
    print(f"{len(graph)} files, {len(circles)} import circles")  # noqa: T201
    return 1 if circles else 0


if __name__ == "__main__":
    sys.exit(main())
