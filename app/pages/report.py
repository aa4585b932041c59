"""A static report: one file that holds a run and the modules that show it. It opens in any browser and loads nothing.

The pages' own modules are embedded as data: URLs under the names of an import map. A module in such a URL has no folder, so its
imports are named from the root.
"""

from __future__ import annotations

import base64
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Final

import orjson

from app.pages.shell import STATIC, render

ENTRY: Final = "js/pages/report.js"
STYLES: Final = ("vendor/uPlot.min.css", "style.css")
_IMPORT: Final = re.compile(r'^(import (?:[^"]* from )?")([^"]+)(";)$', re.MULTILINE)


def write_report(document: bytes, path: Path) -> None:
    """Write the report of a run to `path`. document: the run as JSON, as `GET /v1/profiles/{number}` returns it."""
    name = orjson.loads(document)["model"]["name"]
    modules = {
        name: f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}" for name, text in _modules().items()
    }
    html = render(
        "report.html",
        name=name,
        styles="\n".join((STATIC / style).read_text("utf-8") for style in STYLES),
        theme=(STATIC / "js/theme.js").read_text("utf-8"),
        modules=orjson.dumps({"imports": modules}).decode(),
        document=document.decode().replace("<", "\\u003c"),  # JSON has it in strings only, and no string may end the element
        entry=ENTRY,
    )
    path.write_text(html, "utf-8")


def _modules() -> dict[str, str]:
    """Return the text of every module that the report needs, by its path below the static folder."""
    found: dict[str, str] = {}
    wanted = [ENTRY]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _IMPORT.sub(partial(_from_root, posixpath.dirname(name)), (STATIC / name).read_text("utf-8"))
            wanted += [match[2] for match in _IMPORT.finditer(found[name])]
    return found


def _from_root(folder: str, match: re.Match[str]) -> str:
    """Rewrite an import statement of a module in `folder` so that it is named from the root."""
    return f"{match[1]}{posixpath.normpath(posixpath.join(folder, match[2]))}{match[3]}"
