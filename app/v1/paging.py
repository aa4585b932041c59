"""Lists of `/v1`: pages of limited size with a cursor, the newest item first, and the types of their parameters."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from app.models.repository import Repository
from scheduler.errors import NotFoundError
from scheduler.store import Page

T = TypeVar("T")
Size = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(max_length=256)]
Key = Annotated[str, Query(pattern=r"^[0-9a-f]{8,64}$")]
Limit = Annotated[int, Query(ge=1, le=500, description="The most items of this page.")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the previous page.")]


class PageOut(BaseModel, Generic[T]):
    """One page of a list. next: the cursor of the following page; null on the last page."""

    items: list[T]
    next: str | None


async def page_of(repository: Repository, model: str | None, device: str | None, asked: Awaitable[Page[T]]) -> Page[T]:
    """Await a page about a model and a device. It is empty for a served model of which the database has no record yet.

    Raises: NotFoundError for an unknown model or device.
    """
    try:
        return await asked
    except NotFoundError:
        if device is not None or not repository.serves(model):
            raise
        return Page((), None)
