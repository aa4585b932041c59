"""A model's configuration in the terms of the protocol: what a load request may override, and what `/config` returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from app.engine.policy import Rules
from app.errors import RequestError
from app.models.datatypes import datatype_of
from app.models.files import MODEL_FILE
from graph.ir import Port
from kernels.spec import STRING, DType

if TYPE_CHECKING:
    from scheduler.session import Session

PLATFORM = "onnx_onnxv1"
BACKENDS = frozenset({"", "edgewise", "onnxruntime", "onnx"})  # names that clients use for an ONNX model
MAX_CONFIG_BYTES = 2**20


class Latest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve the newest versions."""

    num_versions: int = 1


class Every(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve every version."""


class Specific(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve these versions."""

    versions: list[int] = []


class VersionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which versions to serve: one of the three policies; without any, every version."""

    latest: Latest | None = None
    all: Every | None = None
    specific: Specific | None = None

    def choose(self, versions: Iterable[str]) -> list[str]:
        """Return the versions to serve, ascending. Raises RequestError 400 if there are none."""
        found = sorted(versions, key=int)
        chosen = found
        if self.specific is not None:
            wanted = set(map(str, self.specific.versions))
            if missing := sorted(wanted - set(found), key=int):
                raise RequestError(400, f"config: version_policy wants version {missing[0]}, there are {', '.join(found)}")
            chosen = [version for version in found if version in wanted]
        elif self.latest is not None:
            chosen = found[-self.latest.num_versions :] if self.latest.num_versions > 0 else []
        if not chosen:
            raise RequestError(400, f"config: version_policy chooses none of versions {', '.join(found)}")
        return chosen


class Override(Rules, frozen=True, forbid_unknown_fields=True):
    """The config of a load request."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    version_policy: VersionPolicy = VersionPolicy()
    input: list[dict[str, Any]] = msgspec.field(default_factory=list)
    output: list[dict[str, Any]] = msgspec.field(default_factory=list)
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    default_model_filename: str = ""


NO_OVERRIDE = Override()


def parse_override(name: str, text: str) -> Override:
    """Parse the config of a load request, which is JSON. Raises RequestError 400."""
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise RequestError(400, f"config of model '{name}': more than {MAX_CONFIG_BYTES} bytes, the limit")
    try:
        override = msgspec.json.decode(text, type=Override)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"config of model '{name}': {str(error)[:200]}") from None
    if override.name not in ("", name):
        raise RequestError(400, f"config of model '{name}': its name is '{override.name[:128]}', need '{name}' or none")
    if override.platform not in ("", PLATFORM) or override.backend not in BACKENDS:
        raise RequestError(400, f"config of model '{name}': need platform {PLATFORM} and no other backend than edgewise")
    return override


def check_override(name: str, override: Override, rules: Rules, session: Session) -> None:
    """Raise RequestError 400 if the config, or the rules that result from it, contradict the model."""
    if rules.max_batch_size:
        for port in (*session.inputs, *session.outputs):
            if not port.dims or isinstance(port.dims[0], int):
                raise RequestError(
                    400, f"config of model '{name}': max_batch_size needs an open first dimension, {port.name!r} has none"
                )
    for role, told, ports in (("input", override.input, session.inputs), ("output", override.output, session.outputs)):
        known = {port.name: _data_type(port.dtype) for port in ports}
        for entry in told:
            tensor, kind = str(entry.get("name", "")), entry.get("data_type")
            if tensor not in known:
                raise RequestError(400, f"config of model '{name}': it has no {role} '{tensor[:128]}', it has {', '.join(known)}")
            if kind is not None and kind != known[tensor]:
                raise RequestError(
                    400, f"config of model '{name}': data_type of '{tensor}' is {str(kind)[:40]}, need {known[tensor]}"
                )


def model_config(name: str, versions: Sequence[str], override: Override, rules: Rules, session: Session) -> dict[str, Any]:
    """Return the reply of `/config`. With a max_batch_size, dims leave out the batch dimension, as the protocol requires."""
    skipped = 1 if rules.max_batch_size else 0
    group = {"name": f"{name}_0", "kind": "KIND_CPU", "count": 1, "gpus": []}
    policy = msgspec.to_builtins(override.version_policy) or {"all": {}}
    config: dict[str, Any] = {
        "name": name,
        "platform": PLATFORM,
        "backend": "edgewise",
        "version_policy": policy,
        "max_batch_size": rules.max_batch_size or 0,
        "input": [_tensor(port, skipped) for port in session.inputs],
        "output": [_tensor(port, skipped) for port in session.outputs],
        "instance_group": msgspec.to_builtins(rules.instance_group) or [group],
        "default_model_filename": MODEL_FILE.name,
        "parameters": {
            **override.parameters,
            "threads": {"string_value": str(session.threads)},
            "plan_id": {"string_value": session.plan_id},
            "versions": {"string_value": ",".join(versions)},
        },
    }
    if rules.dynamic_batching is not None:
        config["dynamic_batching"] = msgspec.to_builtins(rules.dynamic_batching)
    return config


def _tensor(port: Port, skipped: int) -> dict[str, Any]:
    dims = [dim if isinstance(dim, int) else -1 for dim in port.dims or ()]
    return {"name": port.name, "data_type": _data_type(port.dtype), "dims": dims[skipped:]}


def _data_type(dtype: DType) -> str:
    return "TYPE_STRING" if dtype == STRING else f"TYPE_{datatype_of(dtype)}"
