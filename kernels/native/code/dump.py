"""IR and assembly as files, for a developer who sets EDGEWISE_DEBUG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kernels.errors import InvalidError
from kernels.log import ASSEMBLY, DEBUG_FOLDER, IR, debug_folder, debug_level
from kernels.native.code.cache import Source
from kernels.native.target.isa import Isa

_written: set[tuple[Path, str, int]] = set()


def dump_modules(modules: Sequence[Source], isa: Isa) -> None:
    """Write each module as `<name>.ll`, and from level 4 on as `<name>.s`, whether its code is known already or not.

    A process writes each once. Raises InvalidError where the folder cannot be written to, CompileError where LLVM refuses one.
    """
    level = debug_level()
    if level < IR:
        return
    folder = debug_folder()
    for module in modules:
        if (folder, module.name, level) in _written:
            continue
        text = module.text()
        _write(folder / f"{module.name}.ll", text)
        if level >= ASSEMBLY:
            from kernels.native.code.compile import assembly  # noqa: PLC0415  it loads LLVM

            _write(folder / f"{module.name}.s", assembly(text, isa))
        _written.add((folder, module.name, level))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidError(f"{DEBUG_FOLDER}: {path.name!r} cannot be written, {error.strerror}") from error
