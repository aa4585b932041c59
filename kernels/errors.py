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
    └── DeviceLostError       the device or worker that held the work is gone: try again

Each folder adds its own leaves in its own `errors.py`. A message reads `<subject>: <fact with values>, <rule> (<where>)`.
"""

from __future__ import annotations


class EdgewiseError(Exception):
    """Root of every error raised on purpose."""


class InvalidError(EdgewiseError):
    """The caller's data breaks a rule."""


class UnsupportedError(EdgewiseError):
    """The request is valid, and this build cannot do it."""


class DeviceLostError(EdgewiseError):
    """The device or worker that held the work is gone."""


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
