"""One inference from its arrival to its answer, the same for every transport: lease, decode, run, encode, record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect

from app.engine.lane import rows_of
from app.engine.requests import InferOptions, Outcome
from app.errors import CLIENT_GONE, status_of
from app.models.repository import Served
from app.oip.request import InferRequest, for_model
from app.service import Service
from app.watch.flops import Shapes
from app.watch.statistics import Reason, Timed
from kernels.errors import EdgewiseError
from scheduler.session import Session

LARGE_BYTES = 64 * 1024  # larger requests are decoded, and larger answers encoded, off the event loop

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Exchange(Protocol[R_co]):
    """A request for inference and its answer, as one transport carries them. R_co: the answer, encoded."""

    @property
    def request_id(self) -> str:
        """The id that the log and the client know the request by."""

    @property
    def deadline_ns(self) -> int | None:
        """When the client stops waiting, on the monotonic clock; None if it has not said."""

    async def receive(self) -> int:
        """Wait for all of the request. Returns how many of its bytes `decode` examines one by one, as a measure of its time."""

    def decode(self, served: Served, session: Session) -> InferRequest:
        """Decode the request. Raises RequestError."""

    def encode(self, asked: InferRequest, served: Served, outcome: Outcome) -> R_co:
        """Encode the answer. Raises RequestError for outputs that have no such form."""

    async def attend(self, work: Awaitable[T]) -> T:
        """Await the work, but cancel it and raise when the client has left."""


async def infer(service: Service, name: str, version: str | None, exchange: Exchange[R_co]) -> tuple[R_co, dict[str, Any]]:
    """Run a model on one request, and record it. version: None = the newest.

    Returns: the answer, and what the log says of it.
    Raises:  RequestError; what `Engine.infer` raises.
    """
    started_ns = time.perf_counter_ns()
    with service.repository.lease(name, version) as (served, session):
        statistics = service.statistics.of(served.name, served.version)
        statistics.pending += 1
        try:
            timed, shapes, answer = await _answer(service, served, session, exchange, started_ns)
        except BaseException as error:
            statistics.failed(_reason(error), time.perf_counter_ns() - started_ns)
            raise
        finally:
            statistics.pending -= 1
        service.recorder.record(served, session, shapes, timed, exchange.request_id)
        return answer, {
            "model": served.name,
            "version": served.version,
            "plan": timed.outcome.plan_id[:12],
            "queue_ns": timed.outcome.queue_ns,
            "compute_ns": timed.outcome.compute_ns,
            "batch_rows": timed.outcome.batch_rows,
        }


async def _answer(
    service: Service, served: Served, session: Session, exchange: Exchange[R_co], started_ns: int
) -> tuple[Timed, Shapes, R_co]:
    """Decode the request, run the model and encode the answer. started_ns: arrival, on the performance counter."""
    slow_bytes = await exchange.receive()
    decoding_ns = time.perf_counter_ns()
    decoded = await _somewhere(service, slow_bytes, exchange.decode, served, session)
    asked = for_model(decoded, served, session)
    input_ns = time.perf_counter_ns() - decoding_ns
    own_ns = time.monotonic_ns() + 1000 * asked.timeout_us if asked.timeout_us else None
    ends = [deadline for deadline in (own_ns, exchange.deadline_ns) if deadline is not None]
    options = InferOptions(asked.priority, min(ends, default=None), asked.id or exchange.request_id)
    outcome = await exchange.attend(service.engine.infer(served, asked.feeds, options))
    encoding_ns = time.perf_counter_ns()
    size = sum(array.nbytes for array in outcome.outputs.values())
    answer = await _somewhere(service, size, exchange.encode, asked, served, outcome)
    ended_ns = time.perf_counter_ns()
    timed = Timed(outcome, rows_of(asked.feeds), input_ns, ended_ns - encoding_ns, ended_ns - started_ns)
    return timed, tuple((name, array.shape) for name, array in asked.feeds.items()), answer


async def _somewhere(service: Service, size: int, work: Callable[..., T], *arguments: object) -> T:
    """Do small work at once, and large work on a thread. size: in bytes."""
    return work(*arguments) if size <= LARGE_BYTES else await service.engine.call(work, *arguments)


def _reason(error: BaseException) -> Reason:
    """Return why a request failed, as a label of the failure metric."""
    if isinstance(error, asyncio.CancelledError | ClientDisconnect):
        return "CANCELED"
    status = status_of(error) if isinstance(error, EdgewiseError) else 500
    return (
        "CANCELED" if status == CLIENT_GONE else "REJECTED" if status in (429, 503) else "BACKEND" if status >= 500 else "OTHER"
    )
