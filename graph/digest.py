"""The digest by which a model is known: SHA-256 over the bytes of its file and of its external data."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from graph.limits import Check, go_on
from graph.mapped import MappedFile, release, require_unchanged
from kernels.spec import Array


class Digest:
    """The digest of a model whose bytes are mapped, computed when it is first asked for: a run does not need it.

    Hashing takes half a second for each gigabyte, a third of what a small process needs to its first result.

    Args:    parts: what is hashed, in order. files: the files that these are mapped from, all that `parts` keeps in memory.
    """

    def __init__(self, parts: Sequence[MappedFile | bytes | Array], files: Sequence[MappedFile] = ()) -> None:
        self._parts, self._files = tuple(parts), tuple(files)
        self._text = ""
        self._hashing = threading.Lock()

    @classmethod
    def known(cls, text: str) -> Digest:
        """Return a digest that was computed before."""
        made = cls(())
        made._text = text
        return made

    def text(self, check: Check = go_on) -> str:
        """Return the digest in hexadecimal.

        check: called between parts; what it raises ends the work. Raises: CorruptModelError where a file was written to.
        """
        with self._hashing:
            if not self._text:
                self._text = self._computed(check)
                self._parts = self._files = ()
            return self._text

    def _computed(self, check: Check) -> str:
        require_unchanged(self._files)
        digest = hashlib.sha256()
        for part in self._parts:
            check()
            if isinstance(part, MappedFile):
                for piece in part.pieces():
                    digest.update(piece)
            elif isinstance(part, bytes):
                digest.update(part)
            elif part.size:
                digest.update(np.ascontiguousarray(part).data.cast("B"))
                release(part)
        require_unchanged(self._files)
        return digest.hexdigest()
