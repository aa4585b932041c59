"""Errors of the scheduler and its database.

EdgewiseError
├── InvalidError
│   ├── StrategyFormatError   text that is no strategy
│   ├── PlanFormatError       JSON that is no plan, or breaks a limit
│   ├── RecordFormatError     an imported or paged record that breaks its schema
│   └── ConflictError         the write contradicts what is stored
│       └── LeaseLostError    the job is somebody else's by now, or has ended
├── UnsupportedError
│   └── InfeasibleError       no plan meets the constraints; it carries the closest one, so `scheduler.plan` defines it
├── NotFoundError             nothing is stored under that key
├── StoppedError              what was to be measured was stopped before it was
├── StalePlanError            the plan was made for another device, engine build or kernel source: plan again
└── StoreError                the database cannot do it now; names the database and what to do
    ├── StoreMissingError     the database does not exist and was not to be created
    ├── StoreLockedError      another writer held it for too long: try again
    ├── StoreReadOnlyError    its file or folder is not writable, or the disk is full
    ├── StoreCorruptError     the file is damaged or no database
    ├── StoreVersionError     its schema is newer than this build, or older and not to be upgraded
    └── StoreUnreachableError the server does not answer or refuses the login
"""

from __future__ import annotations

from kernels.errors import EdgewiseError, InvalidError


class StrategyFormatError(InvalidError):
    """Text that is no strategy."""


class PlanFormatError(InvalidError):
    """JSON that is no plan, or breaks a limit."""


class RecordFormatError(InvalidError):
    """An imported record, a cursor or a page size breaks its rule."""


class ConflictError(InvalidError):
    """The write contradicts what is stored."""


class LeaseLostError(ConflictError):
    """Whoever speaks of a job does not have it any more: it was taken by another, or has ended."""


class NotFoundError(EdgewiseError):
    """Nothing is stored under that key."""


class StoppedError(EdgewiseError):
    """What was to be measured was stopped before it was, because somebody asked for that."""


class StalePlanError(EdgewiseError):
    """The plan was made for another device, engine build or kernel source."""


class StoreError(EdgewiseError):
    """The database cannot do it now."""


class StoreMissingError(StoreError):
    """The database does not exist, and was not to be created."""


class StoreLockedError(StoreError):
    """Another writer held the database for too long."""


class StoreReadOnlyError(StoreError):
    """The database's file or folder is not writable, or the disk is full."""


class StoreCorruptError(StoreError):
    """The file is damaged, or is no database."""


class StoreVersionError(StoreError):
    """The schema is newer than this build, or older and not to be upgraded."""


class StoreUnreachableError(StoreError):
    """The database server does not answer, or refuses the login."""
