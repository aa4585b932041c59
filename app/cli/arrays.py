"""Arrays that a user gives as files, for commands that run models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from app.cli.console import ArgumentError
from app.oip import codec
from app.oip.request import CodecLimits
from kernels.spec import Array


def read_arrays(texts: Iterable[str]) -> dict[str, Array]:
    """Read --input: x=file.npy, every array of a file.npz, or the inputs of a JSON request. Raises ArgumentError."""
    feeds: dict[str, Array] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if equals:
            feeds[name] = np.load(path, allow_pickle=False)
        elif text.endswith(".npz"):
            feeds.update(np.load(text, allow_pickle=False))
        elif text.endswith(".json"):
            body = Path(text).read_bytes()
            feeds.update(codec.decode(body, len(body), CodecLimits()).feeds)
        else:
            raise ArgumentError(f"--input: {text!r} is not understood, need name=file.npy, file.npz or request.json")
    return feeds


def read_samples(paths: list[Path]) -> list[dict[str, Array]]:
    """Read the inputs of --samples. Raises ArgumentError for a file that holds no arrays by name."""
    found = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found.append(dict(arrays))
        except (OSError, ValueError, TypeError) as error:
            raise ArgumentError(f"--samples {path}: it is no .npz file of inputs by name, {error}") from None
    return found
