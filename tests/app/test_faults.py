"""Every row of docs/faults.md is true: requests get the answer that it states, and the tests that it names exist."""

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from docs.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", [row for row in FAULTS if row.request], ids=lambda row: f"{row.incident}: {row.sent}")
def test_fault_gets_its_answer(client: httpx.Client, fault: Fault) -> None:
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=30) as raw:
        raw.sendall(fault.request.replace(b"{host}", address.netloc.encode()))
        reply = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    found = json.loads(body)
    assert (int(head.split(b" ")[1]), list(found)) == (fault.status, ["error"]), found
    assert fault.says in found["error"]
    assert not re.search(r"/tmp|Traceback|0x[0-9a-f]{8}|\.py\b", found["error"])


@pytest.mark.parametrize("proof", sorted({row.proof for row in FAULTS if row.proof}))
def test_proof_exists(proof: str) -> None:
    path, _, name = proof.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_every_row_is_shown_one_way() -> None:
    assert [row for row in FAULTS if bool(row.request) == bool(row.proof)] == []
