"""Errors of the profiler.

EdgewiseError
├── InvalidError
│   ├── ProfileFormatError   stored or received profile data that breaks its schema
│   ├── ConventionError      no counting convention of that name
│   └── SweepError           a sweep over no sizes, or over too many
└── MeasurementError         a measurement that contradicts itself or cannot be taken here: measure again
    └── MachineBusyError     other work used the machine meanwhile: its times say nothing, and are not stored
"""

from __future__ import annotations

from kernels.errors import EdgewiseError, InvalidError


class ProfileFormatError(InvalidError):
    """Stored or received profile data breaks its schema."""


class ConventionError(InvalidError):
    """No counting convention of that name."""


class SweepError(InvalidError):
    """A sweep over no sizes, or over too many."""


class MeasurementError(EdgewiseError):
    """A measurement contradicts itself, or cannot be taken on this machine."""


class MachineBusyError(MeasurementError):
    """Other work used the machine while it was measured, so that the times are not those of what was measured."""
