"""/v1/models: the served models, their inputs and outputs, and the plans that they follow."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.access.auth import Scope, needs
from app.models.repository import Served
from app.service import RepositoryPart
from app.v1.paging import Name, Size
from scheduler.plan import Plan

router = APIRouter()


class TensorOut(BaseModel):
    """An input or output as the model declares it. shape: an open dimension is its name, or null; null if the rank is unknown."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class RunPlanOut(BaseModel):
    """A stored plan that runs with these input shapes follow."""

    plan_id: str
    inputs: dict[str, list[int]]
    threads: int


class ModelOut(BaseModel):
    """One version of a served model. reason: why it is not ready. plans: what its runs follow; other shapes run "default"."""

    name: str
    version: str
    state: str
    reason: str
    description: str
    digest: str | None
    inputs: list[TensorOut]
    outputs: list[TensorOut]
    plans: list[RunPlanOut]


class ModelsOut(BaseModel):
    """All served models."""

    models: list[ModelOut]


class AtShapes(BaseModel):
    """A served model with concrete shapes. shapes: input name -> shape. dims: name of an open dimension -> size."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    version: Annotated[str, Field(max_length=20)] | None = None
    shapes: Annotated[dict[Name, Annotated[list[Size], Field(max_length=64)]], Field(max_length=64)] = {}
    dims: Annotated[dict[Name, Size], Field(max_length=64)] = {}

    def bound(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes as tuples."""
        return {name: tuple(shape) for name, shape in self.shapes.items()}


def describe(served: Served) -> ModelOut:
    """Return a served model as the API shows it."""
    session = served.session
    ports = {"inputs": session.inputs, "outputs": session.outputs} if session else {"inputs": (), "outputs": ()}
    tensors: dict[str, Any] = {
        role: [TensorOut(name=p.name, dtype=p.type_name, shape=None if p.dims is None else list(p.dims)) for p in found]
        for role, found in ports.items()
    }
    return ModelOut(
        name=served.name,
        version=served.version,
        state=served.state,
        reason=served.reason,
        description=served.card.description,
        digest=session.model.digest if session else None,
        plans=[_run_plan(plan_id, plan) for plan_id, plan in session.plans.items()] if session else [],
        **tensors,
    )


def _run_plan(plan_id: str, plan: Plan) -> RunPlanOut:
    return RunPlanOut(plan_id=plan_id, inputs={item.name: list(item.shape) for item in plan.inputs}, threads=plan.threads)


@router.get("/models")
@needs(Scope.READ)
async def list_models(repository: RepositoryPart) -> ModelsOut:
    """List the served models with their states."""
    return ModelsOut(models=[describe(served) for served in repository.models])


@router.get("/models/{name}")
@needs(Scope.READ)
async def get_model(repository: RepositoryPart, name: str, version: str | None = None) -> ModelOut:
    """Return one model: the version asked for, or its highest ready one."""
    return describe(repository.find(name, version))
