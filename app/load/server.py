"""What a load generator asks of a server, whichever protocol carries it, and how one request can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import msgspec

from app.models.datatypes import DATATYPES
from graph.ir import Port
from kernels.errors import EdgewiseError
from kernels.record import record
from kernels.spec import Array

CONNECTION: Final = "connection"  # the kind of failures without an answer: the connection could not be made, or was lost


MAX_REASON: Final = 300  # characters of an error's text that are kept


class LoadError(EdgewiseError):
    """A load cannot begin: the server is not reached, or refuses what it is asked."""


class FailedError(EdgewiseError):
    """One request failed. kind: what failures are counted by, such as "503" or "connection"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Client(Protocol):
    """A client of a server, which sends one request at a time, the same each time, over a connection that it keeps."""

    async def send(self) -> None:
        """Send the request and read its whole answer, over a new connection where there is none. Raises FailedError.

        A call that is cancelled closes the connection, so that the next one finds no half of an answer.
        """

    async def close(self) -> None:
        """Close the connection."""


@record
class Asked:
    """A request for inference. version: "" = the newest. encoding: of tensors, "binary" or "json"."""

    model: str
    version: str
    feeds: Mapping[str, Array]
    encoding: str


class Total(msgspec.Struct):
    """A total time in nanoseconds, and of how many requests or runs."""

    count: int
    ns: int


class Totals(msgspec.Struct):
    """Total times of requests. success: from arrival to reply. queue: waiting for the engine."""

    success: Total
    queue: Total


class BatchStats(msgspec.Struct):
    """Runs of batches of one size, in rows."""

    batch_size: int
    compute_infer: Total


class ModelStats(msgspec.Struct):
    """What is used of the protocol's statistics of a model. inference_count: rows that it has computed."""

    version: str
    inference_count: int
    inference_stats: Totals
    batch_stats: list[BatchStats]


class Server(Protocol):
    """A server of the protocol, over one of its transports."""

    async def models(self) -> list[str]:
        """Return the names of the served models. Raises LoadError."""

    async def inputs(self, model: str, version: str) -> list[Port]:
        """Return the inputs of a model. Raises LoadError."""

    async def statistics(self, model: str, version: str) -> ModelStats | None:
        """Return the statistics of a model, the newest version's for ""; None if the server has none. Raises LoadError."""

    def clients(self, asked: Asked) -> Callable[[], Client]:
        """Return a function that makes clients which send this request."""


def port_of(model: str, name: str, datatype: str, shape: Iterable[int]) -> Port:
    """Return an input as a server describes it. Raises LoadError for a datatype that is not the protocol's."""
    if datatype not in DATATYPES:
        raise LoadError(f"load: {name!r} of model '{model}' is {datatype!r}, need one of {', '.join(DATATYPES)}")
    return Port(name, DATATYPES[datatype], tuple(None if size < 0 else size for size in shape))
