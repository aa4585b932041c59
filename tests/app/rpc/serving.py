"""Run the service with gRPC in this process, for tests, and make requests for it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from app.main import create_app
from app.rpc.messages import SERVICE, ModelInferRequest, ModelInferResponse
from app.service import Service
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from tests.app.demo import IMAGES


@dataclass
class Rpc:
    """A service that is running in this process, with a channel to it and a client of HTTP."""

    service: Service
    channel: grpc.Channel
    http: httpx.Client

    @property
    def port(self) -> int:
        """The port of gRPC."""
        found: int = self.service.transports[0].port  # type: ignore[attr-defined]
        return found

    def ask(self, name: str, asked: Any = b"", key: str = "", **options: Any) -> bytes:
        """Call a method; return what it answers, serialised."""
        raw = asked if isinstance(asked, bytes) else asked.SerializeToString()
        metadata = [("authorization", f"Bearer {key}")] if key else []
        call = self.channel.unary_unary(f"/{SERVICE}/{name}")
        answer: bytes = call(
            raw, timeout=options.pop("timeout", 60), metadata=[*metadata, *options.pop("metadata", [])], **options
        )
        return answer

    def refused(self, name: str, asked: Any = b"", key: str = "", **options: Any) -> tuple[str, str]:
        """Call a method that is refused; return the code's name and the text."""
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(name, asked, key, **options)
        return caught.value.code().name, caught.value.details()


@contextlib.contextmanager
def serve(**settings: Any) -> Iterator[Rpc]:
    given: dict[str, Any] = {"models": DEMO_MODELS, "grpc_port": 0, "jobs": False}
    made = Settings(**(given | settings))
    app = create_app(made)
    with serving(made, app) as http:
        service: Service = app.state.service
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        port = service.transports[0].port  # type: ignore[attr-defined]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield Rpc(service, channel, http)


def seven(**fields: Any) -> Any:
    pixels = np.array(json.loads((IMAGES / "7.json").read_text())["inputs"][0]["data"], np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}
    return ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[pixels.tobytes()], **fields)


def floats(model: str, array: np.ndarray, **fields: Any) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": array.shape}
    return ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[array.tobytes()], **fields)


def digit(raw: bytes) -> int:
    reply = ModelInferResponse.FromString(raw)
    at = [output.name for output in reply.outputs].index("digit")
    return int(np.frombuffer(reply.raw_output_contents[at], np.int64)[0])
