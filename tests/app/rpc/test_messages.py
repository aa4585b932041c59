"""The messages are those of the protocol, and the committed descriptor is what the compiler makes of the source."""

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from app.rpc import messages, server
from app.rpc.methods import METHODS
from docs import descriptor


def test_the_descriptor_is_what_the_compiler_makes_of_the_source():
    assert descriptor.TARGET.read_text("utf-8") == descriptor.generated(), "run `make proto`"


def theirs(name: str) -> Any:
    """Return tritonclient's description of a message, also of one within another."""
    outer, *inner = name.removeprefix(f"{messages.PACKAGE}.").split(".")
    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    found = next(file.message_types_by_name[outer] for file in files if outer in file.message_types_by_name)
    for part in inner:
        found = found.nested_types_by_name[part]
    return found


def described(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type.full_name if field.message_type else field.enum_type.full_name if field.enum_type else field.type
    return field.name, field.number, field.type, field.is_repeated, kind, bool(field.containing_oneof)


@pytest.mark.parametrize("name", [name for name in messages._CLASSES if name.startswith(f"{messages.PACKAGE}.")])
def test_every_message_is_that_of_triton(name):
    ours, other = messages._CLASSES[name].DESCRIPTOR, theirs(name)
    assert {described(field) for field in ours.fields} <= {described(field) for field in other.fields}
    for enum in ours.enum_types:
        assert [(value.name, value.number) for value in enum.values] == [
            (value.name, value.number) for value in other.enum_types_by_name[enum.name].values
        ]


def test_every_method_of_triton_is_there():
    wanted = {method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert wanted == {*METHODS, "ModelInfer", "ModelStreamInfer", *server._SHARED_MEMORY}


def test_messages_are_read_by_the_other_side():
    made = messages.message("ModelStatisticsResponse")(model_stats=[{"name": "m", "inference_stats": {"success": {"ns": 7}}}])
    read = service_pb2.ModelStatisticsResponse.FromString(made.SerializeToString())
    assert (read.model_stats[0].name, read.model_stats[0].inference_stats.success.ns) == ("m", 7)


def test_the_health_check_is_that_of_grpc():
    assert messages.HealthCheckRequest(service="a").SerializeToString() == b"\x0a\x01a"
    assert messages.HealthCheckResponse(status="SERVING").SerializeToString() == b"\x08\x01"
    assert messages.HealthCheckResponse(status="NOT_SERVING").SerializeToString() == b"\x08\x02"
