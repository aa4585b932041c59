# ruff: noqa: E501  a table
"""The fault table: what went wrong elsewhere, what is sent here, what comes back. `docs/faults.md` is made from it.

A row with a request is sent over a raw socket by `tests/app/test_faults.py`; a row with a proof is shown by the test it names.
"""

import gzip
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One row. request: the bytes; {host} in it is the server's address. says: part of the error's text."""

    incident: str
    seen_in: str
    sent: str
    status: int = 0
    says: str = ""
    request: bytes = b""
    proof: str = ""


INFER = "/v2/models/digits/infer"


def post(body: bytes, path: str = INFER, **headers: str) -> bytes:
    """Return a POST request; underscores in the names of headers are sent as hyphens."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {{host}}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{lines}\r\n"
    return head.encode() + body


def tensor(**changes: object) -> bytes:
    """Return an inference request in JSON whose one input is changed; None leaves a key out."""
    made = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64, **changes}
    return json.dumps({"inputs": [{key: value for key, value in made.items() if value is not None}]}).encode()


def binary(size: object, sent: int = 256, **headers: str) -> bytes:
    """Return an inference request that promises `size` bytes behind its JSON and sends `sent`."""
    head = tensor(data=None, parameters={"binary_data_size": size})
    return post(head + bytes(sent), Inference_Header_Content_Length=str(len(head)), **headers)


TRAVERSAL = "Triton CVE-2026-24208, -24209"
OVERSIZED = "Triton CVE-2025-23310, -23311, -33201, CVE-2026-24173"
AMPLIFIED = "vLLM CVE-2026-34756"
REMOTE = "Ray CVE-2023-48022, CVE-2026-27482"

FAULTS: tuple[Fault, ...] = (
    Fault("Path in a model's name", TRAVERSAL, "load `../x`", 400, "path traversal", post(b"", "/v2/repository/models/../x/load")),
    Fault("Path in a model's name", TRAVERSAL, "load `%2e%2e%2fx`", 400, "path traversal", post(b"", "/v2/repository/models/%2e%2e%2fx/load")),
    Fault("Path in a model's name", TRAVERSAL, "load `..\\x`", 400, "path traversal", post(b"", "/v2/repository/models/..%5cx/load")),
    Fault("Path in a model's name", TRAVERSAL, "load `x` NUL", 400, "path traversal", post(b"", "/v2/repository/models/x%00/load")),
    Fault("Path in a model's name", TRAVERSAL, "load a space", 400, "it is empty", post(b"", "/v2/repository/models/%20/load")),
    Fault("Path in an uploaded file's name", TRAVERSAL, "`file:1/../../x`", proof="tests/app/oip/test_tritonclient.py::test_load_with_files"),
    Fault(
        "File upload", "Triton CVE-2026-24208", "`file:` in a load request", 400, "files in load requests are switched off",
        post(json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}).encode(), "/v2/repository/models/x/load"),
    ),
    Fault("File path over the network", "Triton CVE-2026-24208", "`trace_file`", 501, "trace_file", post(b'{"trace_file":"/tmp/x"}', "/v2/trace/setting")),
    Fault("File path over the network", "Triton CVE-2026-24208", "`log_file`", 501, "log_file", post(b'{"log_file":"/tmp/x"}', "/v2/logging")),
    Fault(
        "Shared memory", "Triton CVE-2025-23319, -23320, -23334", "register a region", 501, "not supported",
        post(b'{"key":"/x","offset":0,"byte_size":8}', "/v2/systemsharedmemory/region/r/register"),
    ),
    Fault(
        "Shared memory", "Triton CVE-2025-23319, -23320, -23334", "an input in a region", 501, "shared memory",
        post(tensor(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8})),
    ),
    Fault("Errors that tell too much", "Triton CVE-2025-23319", "a broken model", proof="tests/app/http/test_connection.py::test_errors_hold_no_paths_and_no_tracebacks"),
    Fault("Deep JSON", OVERSIZED, "100 000 brackets", 400, "nests deeper than 100", post(b"[" * 100_000)),
    Fault("Deep JSON", OVERSIZED, "100 000 brackets to load", 400, "nests deeper than 100", post(b"[" * 100_000, "/v2/repository/models/x/load")),
    Fault("Tiny chunks", OVERSIZED, "10^6 chunks of one byte", proof="tests/app/http/test_connection.py::test_a_million_tiny_chunks"),
    Fault("Decompression bomb", OVERSIZED, "100 MB of zeros in gzip", 413, "after decompression", post(gzip.compress(bytes(100_000_000)), Content_Encoding="gzip")),
    Fault("Body past the limit", OVERSIZED, "a Content-Length of 10^12", 413, "the limit is", post(b"").replace(b"Content-Length: 0", b"Content-Length: 1000000000000")),
    Fault("Slow head", "slowloris", "150 heads that never end", proof="tests/app/http/test_connection.py::test_slow_heads_are_ended"),
    Fault("Slow body", "R-U-Dead-Yet", "a body that never ends", proof="tests/app/http/test_connection.py::test_slow_bodies_are_ended"),
    Fault("Too many connections", "slowloris", "310 where 300 may be", proof="tests/app/http/test_connection.py::test_too_many_connections_are_told"),
    Fault("Lying length", OVERSIZED, "JSON length −1", 400, "need an integer", post(tensor(), Inference_Header_Content_Length="-1")),
    Fault("Lying length", OVERSIZED, "JSON length 10^20", 400, "need an integer", post(tensor(), Inference_Header_Content_Length="1" + "0" * 20)),
    Fault("Lying length", OVERSIZED, "binary_data_size 257 of 256", 400, "bytes left", binary(257)),
    Fault("Lying length", OVERSIZED, "binary_data_size 2^64", 400, "bytes left", binary(2**64)),
    Fault("Lying length", OVERSIZED, "bytes behind the last tensor", 400, "unexpected additional input data", binary(256, sent=300)),
    Fault("Two lengths (smuggling)", "h11 CVE-2025-43859", "Content-Length and chunked", 400, "not HTTP", post(b"", Transfer_Encoding="chunked")),
    Fault("Overflowing shape", "Triton CVE-2026-24173", "[16, 2^60 + 2]", 400, "the limit is", post(tensor(shape=[16, 2**60 + 2]))),
    Fault("Negative shape", "Triton CVE-2026-24173", "[−1, 1, 8, 8]", 400, "sizes ≥ 0", post(tensor(shape=[-1, 1, 8, 8]))),
    Fault("Too many dimensions", "Triton CVE-2026-24173", "65 dimensions", 400, "at most 64", post(tensor(shape=[1] * 65))),
    Fault("Input given twice", OVERSIZED, "two inputs of one name", 400, "given twice", post(json.dumps({"inputs": json.loads(tensor())["inputs"] * 2}).encode())),
    Fault("Number out of range", "Triton known issue", "300 as UINT8", 400, "range of uint8", post(tensor(datatype="UINT8", data=[300] * 64))),
    Fault("NaN in JSON", "orjson writes null", "`NaN`", 400, "not an inference request", post(tensor().replace(b"[0,", b"[NaN,").replace(b"[0, ", b"[NaN, "))),
    Fault("Reserved parameter", "Triton", "`triton_enable_empty_final_response`", 400, "reserved", post(tensor(parameters={"triton_enable_empty_final_response": True}))),
    Fault("Amplifying parameter", AMPLIFIED, "classification of 10^9", 400, "number of classes",
          post(tensor()[:-1] + b',"outputs":[{"name":"digit","parameters":{"classification":1000000000}}]}')),
    Fault("Amplifying parameter", AMPLIFIED, "a page of 10^9 rows", 400, "limit", b"GET /v1/profiles?limit=1000000000 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    Fault("Unknown coding", "Triton", "Content-Encoding br", 501, "need gzip or deflate", post(tensor(), Content_Encoding="br")),
    Fault("Queue full", "KServe issue 4247", "more than may wait", proof="tests/app/engine/test_port.py::test_a_full_queue_is_503"),
    Fault("Deadline in the queue", "Triton queue policy", "a timeout of 1 µs", proof="tests/app/engine/test_port.py::test_a_deadline_in_the_queue_is_503"),
    Fault("Abandoned request", "vLLM issue 10087", "a client that goes away", proof="tests/app/engine/test_port.py::test_abandoned_requests_leave_the_queue"),
    Fault("Endless model", "loops in ONNX", "three nested loops of 999,999 rounds", proof="tests/app/http/test_endless.py::test_a_run_ends_with_its_client_and_another_model_answers"),
    Fault("Endless model", "loops in ONNX", "SIGTERM while it runs", proof="tests/app/http/test_endless.py::test_sigterm_ends_a_service_whose_run_does_not_end"),
    Fault("DNS rebinding", REMOTE, "Host of another site", 421, "Host header", b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"),
    Fault("Write from another site", REMOTE, "Origin of another site", 403, "Origin header", post(tensor(), Origin="http://evil.example")),
    Fault("DNS rebinding", REMOTE, "a Host that begins like an allowed one", 400, "is not a host", b"GET /v2 HTTP/1.1\r\nHost: [::1].evil.example\r\nConnection: close\r\n\r\n"),
    Fault("DNS rebinding", REMOTE, "two Hosts", 400, "need exactly one", b"GET /v2 HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"),
    Fault("DNS rebinding", REMOTE, "another host in the request line", 400, "differs from the host", b"GET http://evil.example/v2 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    Fault("Missing authentication", REMOTE, "every route without a key", proof="tests/app/access/test_auth.py::test_every_route_but_the_public_ones_is_closed_without_a_key"),
    Fault("Route without a rule", "Triton issues 8680, 8686, 8833", "a route that declares nothing", proof="tests/app/access/test_auth.py::test_a_route_without_a_scope_is_refused_to_everybody"),
    Fault("Authorisation by rebuilt URL", "Starlette CVE-2026-48710", "bad Host headers", proof="tests/app/access/test_auth.py::test_host_header_is_checked_before_anything"),
    Fault("External data outside the folder", "onnx CVE-2022-25882, CVE-2024-27318", "a model that points outside", proof="tests/graph/test_reader.py::test_external_data_outside_the_folder_is_refused"),
    Fault("Model bomb", "OpenVINO IR", "small files that make huge tensors", proof="tests/graph/test_hostile.py::test_small_files_that_make_huge_tensors"),
    Fault("Failed reload", "Triton issues 2076, 5757", "a broken model over a good one", proof="tests/app/http/test_server.py::test_reload_under_load_fails_no_request"),
    Fault("Memory kept after unload", "Triton issues 4966, 7727", "500 loads and unloads", proof="tests/app/http/test_server.py::test_memory_comes_back_over_500_loads"),
    Fault("Requests lost on SIGTERM", "Triton issues 6230, 6939", "a rolling restart behind nginx", proof="tests/app/http/test_server.py::test_rolling_restart_behind_nginx_loses_no_request"),
    Fault("Refusal lost to a reset", "nginx lingering_close", "5 MB to an unknown model", proof="tests/app/http/test_lingering.py::test_refusal_arrives_after_all_was_sent"),
    Fault("Refusal lost to a reset", "nginx lingering_close", "200 clients while models reload", proof="tests/app/http/test_lingering.py::test_200_clients_get_answers_while_models_reload"),
    Fault("Client that never stops sending", "nginx lingering_time", "10^15 bytes after a refusal", proof="tests/app/http/test_lingering.py::test_who_never_stops_sending_is_cut"),
    Fault("Flood of jobs", "", "more jobs than a caller may have", proof="tests/app/v1/test_jobs.py::test_each_key_has_a_limit_of_its_own"),
    Fault("Rest of an upload", "", "SIGKILL within an upload", proof="tests/app/v1/test_uploads.py::test_what_a_killed_process_left_is_removed_and_what_goes_on_stays"),
    Fault("Paths in errors of the database", "", "a database that cannot be used", proof="tests/app/http/test_handlers.py::test_databases_that_cannot_be_used"),
    Fault("Database deleted with its keys", "", "a restart with an empty database", proof="tests/app/access/test_directory.py::test_a_deleted_database_lets_no_local_caller_in"),
    Fault("Database file moved", "", "a write after it was moved", proof="tests/app/watch/test_health.py::test_a_moved_file_takes_no_writes_until_it_is_back"),
    Fault("Code of another user", "", "a folder that is exchanged for a link", proof="tests/kernels/native/test_folder.py::test_folder_that_is_exchanged_while_it_is_opened_is_refused"),
    Fault("Clock set back", "", "an hour, while a service runs", proof="tests/app/test_clock.py::test_service_goes_on_over_a_clock_that_is_set"),
    Fault("Database lost", "", "a database that does not answer", proof="tests/app/http/test_server.py::test_a_lost_database_stops_no_inference_and_writes_wait"),
    Fault("Disk full", "", "a database that cannot grow", proof="tests/app/http/test_server.py::test_a_full_disk_is_a_lost_database"),
)  # fmt: skip
