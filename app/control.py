"""/v1: models, profiles, devices, plans and strategies as typed JSON."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.engine import Engine
from app.repository import Repository, Served
from profiler.counts import profile
from profiler.exports import profile_json

router = APIRouter()

Size = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(max_length=256)]


class TensorOut(BaseModel):
    """An input or output as the model declares it; an open dimension is its name, or null."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class ModelOut(BaseModel):
    """One version of a served model."""

    name: str
    version: str
    state: str
    reason: str
    description: str
    digest: str | None
    inputs: list[TensorOut]
    outputs: list[TensorOut]


class ModelsOut(BaseModel):
    """Every served model."""

    models: list[ModelOut]


class ProfileIn(BaseModel):
    """What to profile. shapes: input -> shape; dims: dynamic dimension -> size."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    version: Annotated[str, Field(max_length=20)] | None = None
    shapes: Annotated[dict[Name, Annotated[list[Size], Field(max_length=64)]], Field(max_length=64)] = {}
    dims: Annotated[dict[Name, Size], Field(max_length=64)] = {}


def describe(served: Served) -> ModelOut:
    """A served model for the reply."""
    session = served.session
    ports = {"inputs": session.inputs, "outputs": session.outputs} if session else {"inputs": (), "outputs": ()}
    tensors: dict[str, Any] = {
        role: [TensorOut(name=p.name, dtype=p.dtype.name, shape=None if p.dims is None else list(p.dims)) for p in found]
        for role, found in ports.items()
    }
    return ModelOut(
        name=served.name,
        version=served.version,
        state=served.state,
        reason=served.reason,
        description=served.card.description,
        digest=session.model.digest if session else None,
        **tensors,
    )


@router.get("/models")
async def list_models(request: Request) -> ModelsOut:
    """The served models with their states."""
    repository: Repository = request.app.state.repository
    return ModelsOut(models=[describe(served) for served in repository.models])


@router.get("/models/{name}")
async def get_model(request: Request, name: str, version: str | None = None) -> ModelOut:
    """One model; its highest ready version unless one is asked for."""
    repository: Repository = request.app.state.repository
    return describe(repository.find(name, version))


@router.post("/profiles")
async def make_profile(request: Request, asked: ProfileIn) -> Response:
    """Count what a served model costs for these shapes: per op and in total."""
    repository: Repository = request.app.state.repository
    engine: Engine = request.app.state.engine
    _, session = repository.ready(asked.model, asked.version)
    shapes = {name: tuple(shape) for name, shape in asked.shapes.items()}
    counted = await engine.call(profile, session.model, shapes, asked.dims)
    return Response(orjson.dumps(orjson.loads(profile_json(counted))), media_type="application/json")
