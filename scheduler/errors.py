"""Errors of the scheduler and its database.

EdgewiseError
├── InvalidError
│   ├── StrategyFormatError   a text that does not have the form of a strategy
│   ├── PlanFormatError       JSON that does not have the form of a plan, or breaks a limit
│   ├── RecordFormatError     an imported or paged record that breaks its schema
│   └── ConflictError         the write contradicts what is stored
│       └── LeaseLostError    the caller's lease on a job has ended: another worker took the job, or it is finished
├── UnsupportedError
│   └── InfeasibleError       no plan meets the constraints; it carries the closest one, so `scheduler.plan` defines it
├── NotFoundError             nothing is stored under that key
├── QueueFullError            as many jobs wait or run as may: try again when some have ended
│   └── CallerQueueFullError  as many of one caller's as may
├── StoppedError              a measurement was stopped before it was taken
├── StalePlanError            the plan was made for another device, engine build or kernel source: plan again
└── StoreError                the database cannot serve the request now; the message names it and what to do
    ├── StoreMissingError     the database does not exist, and the caller asked not to create it
    ├── StoreMovedError       its file was moved, deleted or replaced while it was open
    ├── StoreLockedError      another writer held it for too long: try again
    ├── StoreReadOnlyError    its file or folder is not writable, or the disk is full
    ├── StoreCorruptError     the file is damaged, or is not a database
    ├── StoreVersionError     its schema is newer than this build, or older and the caller asked not to upgrade it
    └── StoreUnreachableError the server does not answer or refuses the login
"""

from __future__ import annotations

from kernels.errors import EdgewiseError, InvalidError


class StrategyFormatError(InvalidError):
    """A text does not have the form of a strategy."""


class PlanFormatError(InvalidError):
    """JSON does not have the form of a plan, or breaks a limit."""


class RecordFormatError(InvalidError):
    """An imported record, a cursor or a page size breaks its rule."""


class ConflictError(InvalidError):
    """The write contradicts what is stored."""


class LeaseLostError(ConflictError):
    """The caller's lease on a job has ended: another worker took the job, or it is finished."""


class NotFoundError(EdgewiseError):
    """Nothing is stored under that key."""


class QueueFullError(EdgewiseError):
    """As many jobs wait or run as may."""


class CallerQueueFullError(QueueFullError):
    """As many jobs of one caller wait or run as may."""


class StoppedError(EdgewiseError):
    """A measurement was stopped on request before it was taken."""


class StalePlanError(EdgewiseError):
    """The plan was made for another device, engine build or kernel source."""


class StoreError(EdgewiseError):
    """The database cannot serve the request now.

    told: the message for callers of a service: it does not name the database, which may be a path on the service's host.
    """

    def __init__(self, message: str, told: str = "") -> None:
        super().__init__(message)
        self.told = told or message


class StoreMissingError(StoreError):
    """The database does not exist, and the caller asked not to create it."""


class StoreMovedError(StoreError):
    """The database's file was moved, deleted or replaced while it was open."""


class StoreLockedError(StoreError):
    """Another writer held the database for too long."""


class StoreReadOnlyError(StoreError):
    """The database's file or folder is not writable, or the disk is full."""


class StoreCorruptError(StoreError):
    """The file is damaged, or is not a database."""


class StoreVersionError(StoreError):
    """The schema is newer than this build, or older and the caller asked not to upgrade it."""


class StoreUnreachableError(StoreError):
    """The database server does not answer, or refuses the login."""
