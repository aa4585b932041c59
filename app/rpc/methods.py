"""The methods of the protocol but inference: the scopes that each needs, and the call of `app.oip.calls` that it makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from app.access.audit import Caller
from app.access.auth import Scope
from app.errors import RequestError, refuse
from app.logs import SETTINGS
from app.oip import calls
from app.rpc import codec
from app.rpc.messages import SERVICE, HealthCheckRequest, HealthCheckResponse, message
from app.service import Service
from kernels.record import record

Answer = Callable[[Service, Caller, Any], Awaitable[Any]]


@record
class Method:
    """A method with one request and one answer.

    scopes: one of which a caller needs; none = it needs no key. setting: those for a request that changes settings.
    """

    request: Any
    answer: Answer
    scopes: frozenset[Scope]
    setting: frozenset[Scope] = frozenset()

    def scopes_of(self, asked: Any) -> frozenset[Scope]:
        """Return the scopes that a request needs."""
        return self.setting if self.setting and asked.settings else self.scopes


async def _live(_service: Service, _caller: Caller, _asked: Any) -> Any:
    return message("ServerLiveResponse")(live=True)


async def _ready(service: Service, _caller: Caller, _asked: Any) -> Any:
    return message("ServerReadyResponse")(ready=_holds(service.health.require_ready))


async def _model_ready(service: Service, _caller: Caller, asked: Any) -> Any:
    ready = _holds(lambda: calls.check_model_ready(service, asked.name, asked.version or None))
    return message("ModelReadyResponse")(ready=ready)


def _holds(check: Callable[[], object]) -> bool:
    """Whether a check of readiness passes. Over gRPC the answer is a flag, where HTTP has a status."""
    try:
        check()
    except RequestError:
        return False
    return True


async def _check(service: Service, _caller: Caller, asked: Any) -> Any:
    """Answer the health check of gRPC: of the whole server, or of the protocol's service, which is the same."""
    if asked.service not in ("", SERVICE):
        raise RequestError(404, f"health: unknown service {asked.service[:128]!r}, need {SERVICE} or none")
    ready = _holds(service.health.require_ready)
    return HealthCheckResponse(status="SERVING" if ready else "NOT_SERVING")


async def _server_metadata(_service: Service, _caller: Caller, _asked: Any) -> Any:
    return _filled("ServerMetadataResponse", calls.server_metadata())


async def _model_metadata(service: Service, _caller: Caller, asked: Any) -> Any:
    return _filled("ModelMetadataResponse", calls.model_metadata(service, asked.name, asked.version or None))


async def _model_config(service: Service, _caller: Caller, asked: Any) -> Any:
    return _filled("ModelConfigResponse", {"config": calls.configuration(service, asked.name, asked.version or None)})


async def _statistics(service: Service, _caller: Caller, asked: Any) -> Any:
    return _filled("ModelStatisticsResponse", calls.statistics(service, asked.name or None, asked.version or None))


async def _index(service: Service, _caller: Caller, asked: Any) -> Any:
    return _filled("RepositoryIndexResponse", {"models": await calls.index(service, only_ready=asked.ready)})


async def _load(service: Service, caller: Caller, asked: Any) -> Any:
    await calls.load(service, caller, asked.model_name, codec.parameters_of(asked.parameters), _file)
    return message("RepositoryModelLoadResponse")()


def _file(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise refuse("load: a file needs to be bytes")
    return value


async def _unload(service: Service, caller: Caller, asked: Any) -> Any:
    await calls.unload(service, caller, asked.model_name, codec.parameters_of(asked.parameters))
    return message("RepositoryModelUnloadResponse")()


async def _trace(service: Service, caller: Caller, asked: Any) -> Any:
    given, name = codec.trace_of(asked.settings), asked.model_name or None
    shown = calls.set_trace_settings(service, caller, name, given) if given else calls.trace_settings(service, name)
    reply = message("TraceSettingResponse")()
    for key, value in shown.items():
        reply.settings[key].value.extend(codec.strings(value))
    return reply


async def _logging(service: Service, caller: Caller, asked: Any) -> Any:
    given = codec.settings_of(asked.settings)
    shown = calls.set_log_settings(service, caller, given) if given else SETTINGS.shown()
    reply = message("LogSettingsResponse")()
    for key, value in shown.items():
        kind = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
        setattr(reply.settings[key], kind, value)
    return reply


def _filled(name: str, told: Mapping[str, Any]) -> Any:
    """Return a message with the fields of an answer that it has."""
    return ParseDict(told, message(name)(), ignore_unknown_fields=True)


def _method(name: str, answer: Answer, *scopes: Scope, setting: frozenset[Scope] = frozenset()) -> Method:
    return Method(message(f"{name}Request"), answer, frozenset(scopes), setting)


_ADMIN: Final = frozenset({Scope.ADMIN})
METHODS: Final[Mapping[str, Method]] = {
    "ServerLive": _method("ServerLive", _live),
    "ServerReady": _method("ServerReady", _ready),
    "ModelReady": _method("ModelReady", _model_ready, Scope.INFER, Scope.READ),
    "ServerMetadata": _method("ServerMetadata", _server_metadata, Scope.INFER, Scope.READ),
    "ModelMetadata": _method("ModelMetadata", _model_metadata, Scope.INFER, Scope.READ),
    "ModelConfig": _method("ModelConfig", _model_config, Scope.INFER, Scope.READ),
    "ModelStatistics": _method("ModelStatistics", _statistics, Scope.INFER, Scope.READ),
    "RepositoryIndex": _method("RepositoryIndex", _index, Scope.READ),
    "RepositoryModelLoad": _method("RepositoryModelLoad", _load, Scope.ADMIN),
    "RepositoryModelUnload": _method("RepositoryModelUnload", _unload, Scope.ADMIN),
    "TraceSetting": _method("TraceSetting", _trace, Scope.READ, setting=_ADMIN),
    "LogSettings": _method("LogSettings", _logging, Scope.READ, setting=_ADMIN),
}

HEALTH_METHODS: Final[Mapping[str, Method]] = {"Check": Method(HealthCheckRequest, _check, frozenset())}
