"""A client that leaves takes its inference along: its place in the queue is free at once, and nobody computes for it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """Pure ASGI, around the routes. Only inference is cancelled: other work is finished for whoever asks again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch the connection from the end of the body to the start of the reply."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/infer"):
            await self.app(scope, receive, send)
            return
        task = asyncio.current_task()
        watcher: asyncio.Task[None] | None = None
        left = False

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            if task is not None:
                task.cancel()

        async def received() -> Message:
            nonlocal watcher
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                watcher = asyncio.get_running_loop().create_task(watch())
            return message

        async def sent(message: Message) -> None:
            if watcher is not None:
                watcher.cancel()
            await send(message)

        try:
            await self.app(scope, received, sent)
        except asyncio.CancelledError:
            if not left or task is None or task.uncancel() > 0:
                raise
        finally:
            if watcher is not None:
                watcher.cancel()
