"""The messages of `inference.proto` and `health.proto` as classes.

They are built from the committed descriptor at import, in a pool of their own: tritonclient, which describes messages of the same
names, may be imported in the same process, and any version of protobuf will do.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from app.rpc.descriptor import DESCRIPTOR

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR).file
    for file in files:
        pool.Add(file)
    return dict(message_factory.GetMessageClassesForFiles([file.name for file in files], pool))


_CLASSES: Final = _classes()


def message(name: str) -> Any:
    """Return the class of a message, as in message("ModelInferRequest")."""
    return _CLASSES[f"{PACKAGE}.{name}"]


HEALTH: Final = "grpc.health.v1.Health"
HealthCheckRequest: Final = _CLASSES["grpc.health.v1.HealthCheckRequest"]
HealthCheckResponse: Final = _CLASSES["grpc.health.v1.HealthCheckResponse"]

ModelInferRequest: Final = message("ModelInferRequest")
ModelInferResponse: Final = message("ModelInferResponse")
ModelStreamInferResponse: Final = message("ModelStreamInferResponse")
InferParameter: Final = message("InferParameter")
