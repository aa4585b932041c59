"""What the protocol's calls answer, except for inference, whichever transport carries them. All raise RequestError.

The answers are those of the protocol as JSON; over gRPC the fields of its messages have the same names.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from app.access.audit import Caller
from app.errors import RequestError, refuse
from app.logs import SETTINGS
from app.models.config import PLATFORM, model_config
from app.models.datatypes import datatype_of
from app.models.loading import LoadRequest
from app.models.repository import State
from app.service import Service
from app.settings import Settings
from app.watch.health import Health
from graph.ir import Port
from kernels.version import VERSION

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


def server_metadata() -> dict[str, Any]:
    """Return the server's name, its version, and the protocol extensions that it implements."""
    return {"name": "edgewise", "version": VERSION, "extensions": list(EXTENSIONS)}


def check_model_ready(service: Service, name: str, version: str | None) -> str:
    """Return a model's name if it can run, else raise 404 or 503."""
    served, _ = service.repository.ready(name, version)
    service.health.require_model_ready(served.name)
    return served.name


def model_metadata(service: Service, name: str, version: str | None) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs."""
    served, session = service.repository.ready(name, version)
    return {
        "name": served.name,
        "versions": [other.version for other in service.repository.versions(name)],
        "platform": PLATFORM,
        "inputs": [_tensor(port) for port in session.inputs],
        "outputs": [_tensor(port) for port in session.outputs],
    }


def configuration(service: Service, name: str, version: str | None) -> dict[str, Any]:
    """Return how a model is served, as the protocol's model configuration."""
    served, session = service.repository.ready(name, version)
    versions = [other.version for other in service.repository.versions(name)]
    return model_config(served.name, versions, served.override, served.rules, session)


def statistics(service: Service, name: str | None, version: str | None) -> dict[str, Any]:
    """Return counts and durations of requests, of every model or of one, since the start."""
    repository = service.repository
    try:
        found = (
            repository.models
            if name is None
            else repository.versions(name)
            if version is None
            else [repository.find(name, version)]
        )
    except RequestError as error:
        raise RequestError(400, str(error)) from None  # the status that the statistics extension defines
    rows = []
    for served in found:
        memory_bytes = 0 if served.session is None else service.engine.memory_bytes(served.session)
        row = service.statistics.of(served.name, served.version).shown(served.name, served.version, memory_bytes)
        row["batch_curves"] = [] if served.session is None else service.engine.batch_curves(served.session)
        rows.append(row)
    return {"model_stats": rows}


async def index(service: Service, *, only_ready: bool) -> list[dict[str, str]]:
    """List every model version with its state, or only those that are ready."""
    rows = await service.engine.call(service.repository.index)
    return [row for row in rows if not only_ready or row.get("state") == State.READY]


async def load(
    service: Service, caller: Caller, name: str, parameters: Mapping[str, Any], decoded: Callable[[object], bytes]
) -> None:
    """Load or reload a model, and return when it is ready.

    parameters: `config`, a model configuration as JSON text that overrides the file beside the model, and
    `file:<version>/<path>`, files to load instead of the repository's. decoded: reads such a file from its parameter.
    """
    require_control(service.settings, service.health)
    asked = await service.engine.call(_load_request, name, parameters, decoded, service.settings.file_uploads)
    await asyncio.shield(service.loads.join(asked))  # goes on when the client leaves, so that a retry finds it done
    service.audit.record(caller, "model.load", name)


async def unload(service: Service, caller: Caller, name: str, parameters: Mapping[str, Any]) -> None:
    """Unload a model. Running requests have EDGEWISE_DRAIN_S to finish; then they are answered 503, and their runs stopped."""
    require_control(service.settings, service.health)
    for key, value in parameters.items():
        if key != "unload_dependents" or not isinstance(value, bool):
            raise refuse(f"unload: parameter {key[:40]!r} is not understood, need unload_dependents, true or false")
    service.engine.retire(await service.engine.call(service.repository.unload, name))
    service.audit.record(caller, "model.unload", name)


def trace_settings(service: Service, name: str | None) -> dict[str, Any]:
    """Return the trace settings of the server, or those that apply to one model."""
    if name is not None:
        service.repository.find(name)
    return service.traces.shown(name)


def set_trace_settings(service: Service, caller: Caller, name: str | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Change the given trace settings. None resets a model's setting to the server's, and the server's to its default."""
    if name is not None:
        service.repository.find(name)
    shown = service.traces.update(name, asked)
    service.audit.record(caller, "trace.settings", name or "")
    return shown


def set_log_settings(service: Service, caller: Caller, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Change the given logging settings; None leaves a setting unchanged."""
    SETTINGS.update(asked)
    service.audit.record(caller, "log.settings", "")
    return SETTINGS.shown()


def refuse_shared_memory(kind: str) -> RequestError:
    """Return the refusal of a shared memory call: no path is ever taken over the network. kind: "system" or "cuda"."""
    return RequestError(501, f"{kind} shared memory is not supported, send tensors in the request")


def _tensor(port: Port) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in port.dims or ()]
    return {"name": port.name, "datatype": datatype_of(port.dtype), "shape": shape}


def require_control(settings: Settings, health: Health) -> None:
    """Raise RequestError 503 if models may not be loaded or unloaded over the network, or the service is not running."""
    if not settings.repository_control:
        raise RequestError(503, "repository: loading and unloading is switched off, see EDGEWISE_REPOSITORY_CONTROL")
    health.require_running()


def _load_request(name: str, parameters: Mapping[str, Any], decoded: Callable[[object], bytes], uploads: bool) -> LoadRequest:
    config = parameters.get("config")
    if config is not None and not isinstance(config, str):
        raise refuse("load: config needs to be a string with the configuration as JSON")
    files = {}
    for key, value in parameters.items():
        if key == "config":
            continue
        if not key.startswith("file:"):
            raise refuse(f"load: parameter {key[:40]!r} is not understood, need config or file:<version>/<path>")
        if not uploads:
            raise refuse("load: files in load requests are switched off, see EDGEWISE_FILE_UPLOADS")
        if config is None:
            raise refuse("load: files need a config in the same request")
        files[key.removeprefix("file:")] = decoded(value)
    digest = hashlib.sha256(repr((name, config, sorted(files.items()))).encode())
    return LoadRequest(name, config, files, digest.hexdigest())
