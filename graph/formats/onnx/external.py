"""External data of a model file. Every path in it is treated as hostile.

A location is taken only from inside the model's folder: relative, without "..", and no part of it a symbolic link. The file
itself must be regular and have one hard link, so that no device, pipe or file of another user is read (CVE-2022-25882,
CVE-2024-27318 and their successors in the onnx package). Components are opened one by one with O_NOFOLLOW relative to their
parent, so nothing can be swapped in between the check and the use.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from graph.errors import CorruptModelError, UnsafePathError
from graph.mapped import LEAST_BYTES, MappedFile
from kernels.spec import Array, Spec


def open_inside(folder: Path, location: str, subject: str) -> BinaryIO:
    """Open the regular file at `location` below `folder`. Raises UnsafePathError, or CorruptModelError when it is missing."""
    parts = PurePosixPath(location).parts
    where = f"({subject})"
    if not location or "\0" in location or "\\" in location or location.startswith("/") or ".." in parts or not parts:
        raise UnsafePathError(f"external data: location is {location!r}, need a relative path inside the model's folder {where}")
    with ExitStack() as stack:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, parent)
        try:
            for part in parts[:-1]:
                parent = os.open(part, flags | os.O_DIRECTORY, dir_fd=parent)
                stack.callback(os.close, parent)
            descriptor = os.open(parts[-1], flags, dir_fd=parent)
        except FileNotFoundError:
            raise CorruptModelError(f"external data: file {location!r} is missing beside the model {where}") from None
        except OSError as error:
            raise UnsafePathError(
                f"external data: {location!r} cannot be opened as a plain file ({error.strerror}), "
                f"links and special files are refused {where}"
            ) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise UnsafePathError(f"external data: {location!r} is not a regular file with one hard link {where}")
        return os.fdopen(descriptor, "rb")


def read_tensor(
    folder: Path, entries: dict[str, str], spec: Spec, subject: str, files: dict[str, MappedFile] | None = None
) -> Array:
    """Read one tensor, or map it where it is large and `files` are given.

    Args:    entries: the external_data pairs: location, offset, length. files: location -> the mapped file; new ones are added.
    Returns: an array of the spec.
    """
    if unknown := sorted(set(entries) - {"location", "offset", "length", "checksum"}):
        raise CorruptModelError(f"external data: key {unknown[0]!r} is unknown ({subject})")
    offset = _count(entries, "offset", 0, subject)
    length = _count(entries, "length", spec.nbytes, subject)
    if length != spec.nbytes:
        raise CorruptModelError(f"external data: length is {length}, {spec} needs {spec.nbytes} bytes ({subject})")
    location = entries.get("location", "")
    with open_inside(folder, location, subject) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise CorruptModelError(f"external data: needs bytes {offset}…{offset + length}, the file has {size} ({subject})")
        if files is not None and length >= LEAST_BYTES:
            if location not in files:
                files[location] = MappedFile(file.fileno(), location)
            return files[location].array(offset, spec, subject)
        file.seek(offset)
        array = np.fromfile(file, spec.dtype, spec.elements)
    if array.size != spec.elements:  # it was cut off after its size was read
        raise CorruptModelError(f"external data: {array.nbytes} bytes could be read, {spec} needs {spec.nbytes} ({subject})")
    return array.reshape(spec.shape)


def _count(entries: dict[str, str], key: str, default: int, subject: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise CorruptModelError(f"external data: {key} is {text[:40]!r}, need a non-negative integer ({subject})")
    return int(text)
