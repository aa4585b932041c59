"""The errors that Edgewise raises on purpose. They descend from `EdgewiseError`, grouped by what the caller can do about them.

    EdgewiseError
    ├── InvalidError          the caller's data breaks a rule: change the data
    │   ├── ShapeError        an op refuses the shapes of its inputs
    │   ├── DTypeError        an op refuses the element types of its inputs
    │   ├── AttributeValueError   an op refuses the value of an attribute
    │   └── IndexRangeError   an index tensor points outside the data, seen at run time
    ├── UnsupportedError      valid, but not implemented here: change the model or the build
    │   └── UnknownOpError    no operator of that name is registered
    ├── DataDependentError    a shape depends on values that only a run knows (used by shape propagation, not a fault)
    ├── DeviceLostError       the device or worker that held the work is gone: try again
    └── OutOfMemoryError      there is no memory for it now: try again when other work has ended

Each folder adds its own leaves in its own `errors.py`. A message reads `<subject>: <fact with values>, <rule> (<where>)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class EdgewiseError(Exception):
    """Root of every error raised on purpose."""


class InvalidError(EdgewiseError):
    """The caller's data breaks a rule."""


class UnsupportedError(EdgewiseError):
    """The request is valid, and this build cannot do it."""


class DeviceLostError(EdgewiseError):
    """The device or worker that held the work is gone."""


class OutOfMemoryError(EdgewiseError):
    """There is no memory for the work now: what it needs exceeds what is free, or the system refused it."""


class ShapeError(InvalidError):
    """An op refuses the shapes of its inputs."""


class DTypeError(InvalidError):
    """An op refuses the element types of its inputs."""


class AttributeValueError(InvalidError):
    """An op refuses the value of an attribute."""


class IndexRangeError(InvalidError):
    """An index tensor points outside the data."""


class UnknownOpError(UnsupportedError):
    """No operator of that name is registered."""


class DataDependentError(EdgewiseError):
    """The output's shape depends on values that are not known yet."""


def exhausted(subject: str, error: MemoryError) -> OutOfMemoryError:
    """Return the error to raise for a MemoryError. subject: what needed the memory."""
    reason = f", {error}" if str(error) else ""
    return OutOfMemoryError(f"{subject}: the system has no more memory for it{reason}; try again later, or use smaller shapes")


@contextlib.contextmanager
def memory_errors_of(subject: str) -> Iterator[None]:
    """Turn a MemoryError within the block into an OutOfMemoryError. subject: what needs the memory."""
    try:
        yield
    except MemoryError as error:
        raise exhausted(subject, error) from None
