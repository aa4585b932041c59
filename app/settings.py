"""The settings of the service, in one table: environment variables EDGEWISE_<NAME>, overridden by the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from graph.budget import model_share_bytes, process_share_bytes

DEMO_MODELS = Path(__file__).parent / "demo" / "models"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]", "testserver"})

# Variables that are read where no Settings exist: name, type, default, meaning.
_OUTSIDE = (
    ("EDGEWISE_CODE_CACHE", "Path", "the user's cache folder", "Folder for compiled code; set to nothing: none is kept."),
    ("EDGEWISE_DEBUG", "int", "unset", "1: tracebacks and plans; 2: also kernels; 3: also LLVM IR; 4: also assembly."),
    ("EDGEWISE_DEBUG_DIR", "Path", "a temporary folder", "Folder that EDGEWISE_DEBUG writes IR and assembly to."),
    ("EDGEWISE_DEVICE_SALT", "str", "unset", "Part of this machine's fingerprint; lets one machine pass for several in tests."),
    (
        "EDGEWISE_GPU_CONTEST",
        "int",
        "0",
        "Ways to compute each product that a session on a GPU tries for new shapes, to run by the fastest; 0: the likely best.",
    ),
    ("EDGEWISE_ISA", "str", "the widest there is", "Instruction set that kernels are generated for, one that this machine has."),
    (
        "EDGEWISE_WHEN_BUSY",
        "str",
        "refuse",
        "Times taken while other work used this machine. refuse: measure again, then store nothing. store: store them, marked.",
    ),
    ("EDGEWISE_KEY", "str", "unset", "API key of `edgewise agent`, of scope admin."),
)
# Variables of the tests and the benchmarks.
DEVELOPMENT = {
    "EDGEWISE_BENCH_CACHE": "Folder in which benchmarks keep converted models; the system's temporary folder when unset.",
    "EDGEWISE_EXPORTS": "Folder of exported architectures, for tests marked `exports` and for benchmarks.",
    "EDGEWISE_PEERS_PYTHON": "Python interpreter of the environment that holds the other engines.",
    "EDGEWISE_SCALE": "When set, tests marked `scale` run.",
    "EDGEWISE_SLOW": "When set, tests marked `slow` run.",
    "EDGEWISE_TEST_SEEDS": "Seeds first:last of the random graphs that the tests of native code build.",
}


class Settings(BaseSettings):
    """Limits and addresses. All sizes in bytes, all times in seconds."""

    model_config = SettingsConfigDict(env_prefix="EDGEWISE_", frozen=True)

    models: Path = Field(DEMO_MODELS, description="Folder with name.onnx or name/<version>/model.onnx.")
    db: str | None = Field(None, description="Database URL; SQLite in the user's data directory when unset.")
    host: str = Field(
        "127.0.0.1", description="Address to bind. On any address but loopback, every route but health needs an API key."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the protocol over gRPC on the same address; 0 takes a free one. No gRPC when unset.",
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        None, description="Host headers that are accepted. When unset: the loopback names on loopback, else all."
    )
    keyless: bool | None = Field(
        None,
        description="Whether a server on loopback lets local callers in without an API key while its database holds none. When"
        " unset: unless keys were made before for this database or these models. true: even then. false: never.",
    )
    rate_per_s: float = Field(0, ge=0, description="Requests per second of an API key without a rate of its own; 0 = no limit.")
    key_refresh_s: float = Field(2, gt=0, description="Age at which the copy of the database's API keys is refreshed.")
    key_stale_s: float = Field(
        300, gt=0, description="Age up to which the copy of the API keys is used while the database does not answer."
    )
    session_secret: SecretStr = Field(
        SecretStr(""),
        description="Signs the sessions of the pages; servers with the same secret accept each other's. Random when unset.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Cores that an inference may use; all physical cores when unset."
    )
    workers: int = Field(
        0, ge=0, le=64, description="Engine processes that run models; 0 = models run in the service's own process."
    )
    max_batch_size: int = Field(
        8, ge=1, le=65_536, description="Most rows of a batch, for models proven safe to batch; 1 = no batching."
    )
    shared_bytes: int = Field(
        2**28,
        ge=2**20,
        le=2**38,
        description="Memory that each engine process shares with the service: this much for requests, and again for replies.",
    )
    run_timeout_s: float = Field(
        120,
        gt=0,
        le=86_400,
        description="Time after which the run of a batch is stopped; an engine process that does not stop then is killed.",
    )
    queue_limit: int = Field(256, ge=1, le=100_000, description="Most inferences that wait; further ones are refused with 503.")
    max_body_bytes: int = Field(
        64 * 2**20, ge=1024, description="Size of a request body or gRPC message, also after decompression."
    )
    max_control_bytes: int = Field(
        16 * 2**20, ge=1024, description="Size of a request body, except for inference, load and upload."
    )
    max_bytes_together: int = Field(2**30, ge=1024, description="Size of the bodies of all requests that are being answered.")
    max_connections: int = Field(1024, ge=1, description="Most open connections; further ones are refused with 503.")
    max_requests: int = Field(
        512, ge=1, description="Most requests being answered, including those whose clients have left; further ones get 503."
    )
    max_head_bytes: int = Field(64 * 1024, ge=1024, description="Size of the request line and headers of one request.")
    head_timeout_s: float = Field(10, gt=0, description="Time for a client to send the request line and headers.")
    body_timeout_s: float = Field(300, gt=0, description="Time for a client to send a request's body.")
    linger_s: float = Field(
        10, ge=0, description="Time for which a client that has its answer, and still sends, is read before it is cut."
    )
    linger_bytes: int = Field(
        64 * 2**20, ge=0, description="Bytes that a client that has its answer may still send before it is cut."
    )
    max_tensor_elements: int = Field(2**26, ge=1, description="Most elements of one tensor in a request.")
    max_inputs: int = Field(64, ge=1, description="Most input tensors of one request.")
    plans: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")], ...] = Field(
        (), description="Ids, or their first digits, of stored plans that their models run instead of the newest ones, as JSON."
    )
    plan_refresh_s: float = Field(
        2, gt=0, description="Interval at which new plans of served models are looked up in the database."
    )
    jobs: bool = Field(
        True, description="Whether the service runs the queued jobs of its own device. Agents run those of other devices."
    )
    retune: bool = Field(False, description="Whether to queue a tune job for a plan whose latency has drifted.")
    max_jobs_per_caller: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Most queued and running jobs of one API key, or of all local callers without a key; one more is 429.",
    )
    job_lease_s: float = Field(
        30.0, ge=1, le=600, description="Time after which a job of a worker that does not report is given to another."
    )
    max_listeners: int = Field(64, ge=1, le=10_000, description="Most clients that follow the events of jobs at once.")
    max_outputs: int = Field(256, ge=1, description="Most outputs that one request may name.")
    max_json_bytes: int = Field(16 * 2**20, ge=1024, description="Size of the JSON of one request, without binary tensors.")
    max_models: int = Field(256, ge=1, description="Most model versions of a repository.")
    max_model_bytes: int = Field(2**33, ge=1024, description="Size of one model's file and external data.")
    load_timeout_s: float = Field(300, gt=0, le=86_400, description="Time after which the load of a model is given up.")
    max_arena_bytes: int | None = Field(
        None,
        ge=1024,
        description="Memory that one model may take for its runs, over all its shapes; half of the usable memory when unset.",
    )
    max_memory_bytes: int | None = Field(
        None,
        ge=1024,
        description="Memory that all models and their runs may take together; three quarters of the usable memory when unset.",
    )
    keep_alive_s: int = Field(
        75, ge=1, description="Idle time after which a connection is closed; longer than a proxy's, which then closes first."
    )
    grace_s: float = Field(
        5, ge=0, description="On SIGTERM: time to report not ready while still serving, for load balancers to notice."
    )
    drain_s: int = Field(
        30,
        ge=1,
        description="Time for running requests to end: after the grace period of SIGTERM, and of an unloaded model.",
    )
    strict_ready: bool = Field(False, description="Whether a model that failed to load makes the server not ready.")
    otlp_endpoint: str = Field("", description="OTLP/HTTP URL for traces, as in http://collector:4318/v1/traces; off when unset.")
    max_upload_bytes: int = Field(2**30, ge=0, description="Size of an uploaded model file; 0 = no uploads.")
    repository_control: bool = Field(True, description="Whether models may be loaded and unloaded over HTTP.")
    file_uploads: bool = Field(False, description="Whether load requests may contain files.")

    @field_validator("keyless")
    @classmethod
    def _only_on_loopback(cls, keyless: bool | None, info: ValidationInfo) -> bool | None:
        if keyless and info.data.get("host") not in LOOPBACK:
            raise ValueError(
                f"host is {info.data.get('host')!r}, without keys it needs to be one of {', '.join(sorted(LOOPBACK))}"
            )
        return keyless

    @property
    def loopback(self) -> bool:
        """Whether only clients on this host can connect."""
        return self.host in LOOPBACK

    @property
    def arena_limit_bytes(self) -> int:
        """Memory that the runs of one model may take: as set, or half of what this process may use."""
        return model_share_bytes() if self.max_arena_bytes is None else self.max_arena_bytes

    @property
    def process_limit_bytes(self) -> int:
        """Memory that all models of one process may take: the service and each engine process have equal parts of the whole."""
        whole = process_share_bytes() if self.max_memory_bytes is None else self.max_memory_bytes
        return whole // (self.workers + 1)

    @property
    def host_names(self) -> frozenset[str] | None:
        """Host headers that are accepted; None = all, which is safe only with API keys."""
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
