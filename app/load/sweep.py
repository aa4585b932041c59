"""A sweep: every load with every batch size, one after another, each warmed up, measured, and split by the server's figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from app.engine.feeds import make_feeds, rows_of
from app.load.figures import Split, Step, split, step
from app.load.generator import Bounds, Generator, Load
from app.load.server import Asked, Client, FailedError, LoadError, ModelStats, Server
from kernels.record import record
from kernels.spec import Array


@record
class Plan:
    """What to measure. batches: rows of a request, or (None,) for the user's own arrays as they are. encoding: of tensors.

    warmup_s: before each load, with the same load, which is not counted.
    """

    model: str
    version: str
    loads: Sequence[Load]
    batches: Sequence[int | None]
    own: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    encoding: str
    bounds: Bounds
    warmup_s: float


async def only_model(server: Server) -> str:
    """Return the name of the served model if there is just one. Raises LoadError."""
    names = await server.models()
    if len(names) != 1:
        raise LoadError(f"load: which model? It serves {', '.join(sorted(names)) or 'none'}; name one with --model")
    return names[0]


async def run(server: Server, plan: Plan, stop: asyncio.Event) -> AsyncIterator[Step]:
    """Yield the figures of each load, until `stop` is set.

    Raises: LoadError if the server is not reached or the first request is refused; FeedError for inputs that are not the model's.
    """
    ports = await server.inputs(plan.model, plan.version)
    for batch in plan.batches:
        feeds = make_feeds(ports, plan.own, plan.shapes, batch)
        make = server.clients(Asked(plan.model, plan.version, feeds, plan.encoding))
        for load in plan.loads:
            if stop.is_set():
                return
            clients = [make() for _ in range(load.clients)]
            try:
                await _try(clients[0], plan.bounds.timeout_s)
                await Generator(clients, load, Bounds(plan.warmup_s, None, plan.bounds.timeout_s), stop).run()
                if not stop.is_set():
                    before = await server.statistics(plan.model, plan.version)
                    sample = await Generator(clients, load, plan.bounds, stop).run()
                    yield step(load, rows_of(ports, feeds), sample, await _split(server, plan, before))
            finally:
                for client in clients:
                    await client.close()


async def _try(client: Client, timeout_s: float) -> None:
    """Send one request, so that what is wrong with all of them is told at once. Raises LoadError."""
    try:
        async with asyncio.timeout(timeout_s):
            await client.send()
    except FailedError as error:
        raise LoadError(f"load: the first request failed ({error.kind}): {error}") from None
    except TimeoutError:
        raise LoadError(f"load: the first request had no answer within {timeout_s:g} s") from None


async def _split(server: Server, plan: Plan, before: ModelStats | None) -> Split | None:
    """Return the server's own figures since `before`; None if it has none, or is gone by now."""
    if before is None:
        return None
    try:
        return split(before, await server.statistics(plan.model, plan.version))
    except LoadError:
        return None
