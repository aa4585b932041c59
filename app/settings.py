"""Every knob of the service, in one table: environment variables EDGEWISE_<NAME>, the command line on top of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEMO_MODELS = Path(__file__).parent / "demo" / "models"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]", "testserver"})

# Variables that are read where no Settings exist: name, type, default, meaning.
_OUTSIDE = (
    ("EDGEWISE_CODE_CACHE", "Path", "the user's cache folder", "Folder for compiled code; set to nothing: none is kept."),
    ("EDGEWISE_DEBUG", "int", "unset", "1: tracebacks and plans; 2: also kernels; 3: also LLVM IR; 4: also assembly."),
    ("EDGEWISE_DEBUG_DIR", "Path", "a temporary folder", "Folder that EDGEWISE_DEBUG writes IR and assembly to."),
    ("EDGEWISE_DEVICE_SALT", "str", "unset", "Part of this machine's fingerprint; lets one machine pass for several in tests."),
    ("EDGEWISE_ISA", "str", "the widest there is", "Instruction set that kernels are generated for, one that this machine has."),
    ("EDGEWISE_KEY", "str", "unset", "API key of `edgewise agent`, of scope admin."),
)
# Variables of the tests and the benchmarks.
DEVELOPMENT = {
    "EDGEWISE_BENCH_CACHE": "Folder in which benchmarks keep converted models; the system's temporary folder when unset.",
    "EDGEWISE_EXPORTS": "Folder of exported architectures, for tests marked `exports` and for benchmarks.",
    "EDGEWISE_PEERS_PYTHON": "Python interpreter of the environment that holds the other engines.",
    "EDGEWISE_SCALE": "When set, tests marked `scale` run.",
    "EDGEWISE_SLOW": "When set, tests marked `slow` run.",
}


class Settings(BaseSettings):
    """Limits and addresses. All sizes in bytes, all times in seconds."""

    model_config = SettingsConfigDict(env_prefix="EDGEWISE_", frozen=True)

    models: Path = Field(DEMO_MODELS, description="Folder with name.onnx or name/<version>/model.onnx.")
    db: str | None = Field(None, description="Database URL; SQLite in the user's data directory when unset.")
    host: str = Field("127.0.0.1", description="Address to bind; on any but loopback every route but health needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
    allowed_hosts: tuple[str, ...] | None = Field(
        None, description="Host headers that are answered; the loopback names when unset and on loopback, else all."
    )
    rate_per_s: float = Field(0, ge=0, description="Requests a second of one API key that has no rate of its own; 0 = no limit.")
    key_refresh_s: float = Field(2, gt=0, description="How old the copy of the database's API keys may be.")
    key_stale_s: float = Field(300, gt=0, description="How old it may be while the database does not answer.")
    session_secret: SecretStr = Field(
        SecretStr(""), description="Signs the pages' sessions; servers that share it accept each other's. Random when unset."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Cores an inference may use; physical cores when unset.")
    workers: int = Field(0, ge=0, le=64, description="Processes that compute; 0 = the service's own.")
    max_batch_size: int = Field(
        8, ge=1, le=65_536, description="Rows that share a run, of models whose rows are proven to keep apart; 1 = none."
    )
    shared_bytes: int = Field(
        2**28,
        ge=2**20,
        le=2**38,
        description="Memory that each process shares with the service, once for requests, once for replies.",
    )
    run_timeout_s: float = Field(120, gt=0, le=86_400, description="A process that computes one batch longer is killed.")
    queue_limit: int = Field(256, ge=1, le=100_000, description="Inferences waiting; one more is answered 503.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Request body, also after decompression.")
    max_control_bytes: int = Field(16 * 2**20, ge=1024, description="Request body of anything but an inference or a load.")
    max_bytes_together: int = Field(2**30, ge=1024, description="Bodies of all requests that are being answered.")
    max_connections: int = Field(1024, ge=1, description="Open connections; one more is answered 503.")
    max_requests: int = Field(
        512, ge=1, description="Requests being answered, those of clients that left included; one more is answered 503."
    )
    max_head_bytes: int = Field(64 * 1024, ge=1024, description="Request line and headers of one request.")
    head_timeout_s: float = Field(10, gt=0, description="Time to send a request's head.")
    body_timeout_s: float = Field(300, gt=0, description="Time to send a request's body.")
    max_tensor_elements: int = Field(2**26, ge=1, description="Elements of one request tensor.")
    max_inputs: int = Field(64, ge=1, description="Tensors in one request.")
    plan_refresh_s: float = Field(2, gt=0, description="How soon a plan that was stored for a served model runs it.")
    jobs: bool = Field(True, description="Run the queued jobs of this device in the service; agents run those of others.")
    retune: bool = Field(False, description="Queue a tune job for a plan whose latencies are not what it says.")
    job_lease_s: float = Field(30.0, ge=1, le=3600, description="How long a silent worker keeps its job.")
    max_listeners: int = Field(64, ge=1, le=10_000, description="Clients that follow the events of jobs at once.")
    max_outputs: int = Field(256, ge=1, description="Outputs that one request may ask for.")
    max_json_bytes: int = Field(16 * 2**20, ge=1024, description="JSON of one request; binary tensors do not count.")
    max_models: int = Field(256, ge=1, description="Models of one repository.")
    max_model_bytes: int = Field(2**33, ge=1024, description="One model's file and external data.")
    max_arena_bytes: int = Field(2**33, ge=1024, description="Activations that one model may keep, over all its shapes.")
    keep_alive_s: int = Field(75, ge=1, description="Idle time of a connection; longer than a proxy's, which then closes first.")
    grace_s: float = Field(5, ge=0, description="On SIGTERM: time to be not ready yet serve, for load balancers to see it.")
    drain_s: int = Field(30, ge=1, description="On SIGTERM, after that: time for running requests to end.")
    strict_ready: bool = Field(False, description="Whether a model that failed to load at the start makes the server not ready.")
    otlp_endpoint: str = Field("", description="OTLP/HTTP URL for traces, as in http://collector:4318/v1/traces; off when unset.")
    max_upload_bytes: int = Field(2**30, ge=0, description="A model file that is uploaded into the folder; 0 takes none.")
    repository_control: bool = Field(True, description="Whether models may be loaded and unloaded over HTTP.")
    file_uploads: bool = Field(False, description="Whether a load request may bring files.")

    @property
    def loopback(self) -> bool:
        """Whether only this host can connect."""
        return self.host in LOOPBACK

    @property
    def host_names(self) -> frozenset[str] | None:
        """Host headers that are answered; None = all, which only keys make safe."""
        if self.allowed_hosts is not None:
            return frozenset(self.allowed_hosts)
        return LOOPBACK_NAMES if self.loopback else None


def knobs() -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of every environment variable that the product reads, by name."""
    served = [
        (f"EDGEWISE_{name.upper()}", _type_name(field.annotation), _shown(name, field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return sorted([*served, *_OUTSIDE])


def _type_name(annotation: object) -> str:
    """Return a type as the source names it, without modules: their names differ between versions of Python."""
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b[a-z_]\w*\.", "", name)


def _shown(name: str, value: object) -> str:
    return "the bundled demo" if name == "models" else "unset" if value is None or str(value) == "" else str(value)
