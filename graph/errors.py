"""Errors of model files and of the inputs given to a run. Their base classes are in `kernels/errors.py`.

InvalidError
├── ModelError            the model breaks a rule
│   ├── CorruptModelError     the bytes are not a valid model of any known format
│   ├── LimitError            the model is larger, or runs longer, than an explicit limit allows
│   ├── UnsafePathError       external data lies outside the model's folder
│   └── CyclicGraphError      nodes depend on one another in a cycle
└── FeedError             the arrays given to a run do not fit the model's inputs

EdgewiseError
├── LoadStoppedError      reading a model, or making it ready, was given up before it was done: the model may be valid
└── RunStoppedError       a run was ended before it was done; its data and its model may be valid
    ├── RunCancelledError     the caller, or the service that ran it, gave it up
    └── RunTimeoutError       its deadline passed
"""

from __future__ import annotations

from kernels.errors import EdgewiseError, InvalidError


class ModelError(InvalidError):
    """The model breaks a rule."""


class CorruptModelError(ModelError):
    """The bytes are not a valid model of any known format."""


class LimitError(ModelError):
    """The model is larger, or runs longer, than an explicit limit allows."""


class UnsafePathError(ModelError):
    """External data lies outside the model's folder."""


class CyclicGraphError(ModelError):
    """Nodes depend on one another in a cycle."""


class FeedError(InvalidError):
    """The arrays given to a run do not fit the model's inputs."""


class LoadStoppedError(EdgewiseError):
    """Reading a model, or making it ready, was given up before it was done."""


class RunStoppedError(EdgewiseError):
    """A run was ended before it was done."""


class RunCancelledError(RunStoppedError):
    """A run was given up by its caller, or by the service that ran it."""


class RunTimeoutError(RunStoppedError):
    """The deadline of a run passed before it was done."""
