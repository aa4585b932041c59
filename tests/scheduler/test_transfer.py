from __future__ import annotations

import json

import pytest

from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.store import Store
from scheduler.store.transfer import MAX_LINE_BYTES, Imported, export_measurements, import_measurements
from tests.scheduler.samples import DEVICE, HERE, key, measurement


@pytest.fixture
def other(tmp_path):
    with Store(f"sqlite:///{tmp_path / 'other.db'}") as opened:
        yield opened


def everything(store):
    seen, cursor = set(), None
    while True:
        page = store.measurements.page(HERE, limit=200, cursor=cursor)
        seen |= {found.measurement for found in page.items}
        cursor = page.next
        if cursor is None:
            return seen


def test_measurements_move_with_their_device(store, other):
    store.measurements.save([measurement(f"Conv(f32[{n}])") for n in range(450)])
    assert import_measurements(other, export_measurements(store, HERE)) == Imported(1, 450)
    assert everything(other) == everything(store)
    assert other.devices.get(DEVICE.fingerprint).profile == DEVICE.to_json()


def test_import_twice_changes_nothing(store, other):
    store.measurements.save([measurement()])
    lines = list(export_measurements(store, HERE))
    import_measurements(other, lines)
    import_measurements(other, lines)
    assert everything(other) == {measurement()}


def test_import_keeps_the_better_evidence(store, other):
    store.measurements.save([measurement(samples=5), measurement("Conv(f32[2])", samples=50)])
    other.devices.save(DEVICE)
    other.measurements.save([measurement(samples=10), measurement("Conv(f32[2])", samples=10)])
    import_measurements(other, export_measurements(store, HERE))
    assert {(item.signature, item.samples) for item in everything(other)} == {("Conv(f32[1])", 10), ("Conv(f32[2])", 50)}


def test_export_of_one_device_leaves_the_others(store):
    store.measurements.save([measurement()])
    assert len(list(export_measurements(store, HERE, device=DEVICE.fingerprint))) == 3
    with pytest.raises(NotFoundError):
        list(export_measurements(store, HERE, device="feedfeed"))


HEADER = '{"edgewise":"measurements","version":1}'


def line(**changes):
    fields = {
        "device_fingerprint": DEVICE.fingerprint,
        "engine_build": "b",
        "kernel_source": "",
        "op": "Conv",
        "signature": "Conv()",
        "signature_key": key("Conv()"),
        "strategy": "numpy/rows/fp32/t1",
        "executed_macs": 1,
        "other_flops": 1,
        "moved_bytes": 1,
        "samples": 1,
        **dict.fromkeys(("min_ns", "p50_ns", "p90_ns", "mean_ns", "std_ns"), 1.0),
        "measured_us": 1,
    }
    return json.dumps({"measurement": {**fields, **changes}})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"edgewise":"measurements","version":2}'], r"version, line 1"),
        (['{"measurement":{}}'], "line 1"),
        ([HEADER, "{"], r"not JSON.*line 2"),
        ([HEADER, "[]"], r"list.*line 2"),
        ([HEADER, "[" * 100_000], r"not JSON.*line 2"),
        ([HEADER, '{"what":1}'], r"need device or measurement.*line 2"),
        ([HEADER, '{"device":{}}'], r"device profile.*line 2"),
        ([HEADER, line(p50_ns=-1.0)], r"p50_ns, line 2"),
        ([HEADER, line(p50_ns="1")], r"p50_ns, line 2"),
        ([HEADER, line(p50_ns=float("nan"))], r"line 2"),
        ([HEADER, line(samples=0)], r"samples, line 2"),
        ([HEADER, line(samples=2**63)], r"samples, line 2"),
        ([HEADER, line(strategy="numpy")], r"strategy, line 2"),
        ([HEADER, line(op="a\0b")], r"op, line 2"),
        ([HEADER, line(extra=1)], r"extra, line 2"),
        ([HEADER, line(signature_key=key("other"))], r"SHA-256 of signature \(line 2"),
        ([HEADER, " " + "x" * MAX_LINE_BYTES], r"need at most.*line 2"),
    ],
)
def test_import_names_the_line_that_breaks_a_rule(other, lines, message):
    other.devices.save(DEVICE)
    with pytest.raises(RecordFormatError, match=message):
        import_measurements(other, lines)
    assert everything(other) == set()


def test_import_of_measurements_without_their_device_is_refused(other):
    with pytest.raises(NotFoundError, match="save its profile first"):
        import_measurements(other, [HEADER, line()])
