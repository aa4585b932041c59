"""What can be wrong with a model file or with what it is fed; the tree above these is in `kernels/errors.py`.

InvalidError
├── ModelError            the model breaks a rule
│   ├── CorruptModelError     the bytes are no model of a format that is read, or contradict themselves
│   ├── LimitError            it is valid and larger than an explicit limit
│   ├── UnsafePathError       external data lies outside the model's folder
│   └── CyclicGraphError      the nodes have no order in which they can run
└── FeedError             the arrays given to a run do not fit the model's inputs
"""

from __future__ import annotations

from kernels.errors import InvalidError


class ModelError(InvalidError):
    """The model breaks a rule."""


class CorruptModelError(ModelError):
    """The bytes are no model of a format that is read, or contradict themselves."""


class LimitError(ModelError):
    """The model is larger, or runs longer, than an explicit limit allows."""


class UnsafePathError(ModelError):
    """External data lies outside the model's folder."""


class CyclicGraphError(ModelError):
    """The nodes have no order in which they can run."""


class FeedError(InvalidError):
    """The arrays given to a run do not fit the model's inputs."""
