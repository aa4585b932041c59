from __future__ import annotations

import dataclasses
import hashlib

import pytest
import sqlalchemy as sa

from scheduler.build import Build
from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.plan import State
from scheduler.store import Here
from scheduler.store.schema import ProfileRunRow
from scheduler.strategy import Strategy
from tests.profiler.devices import device, hardware
from tests.scheduler.samples import BUILD, DEVICE, HERE, MODEL, ROWS, key, measurement, plan, report, run_op, step

OTHER_DEVICE = device(hardware=hardware(model="Other 1"))
OTHER = Here(OTHER_DEVICE.fingerprint, BUILD)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_device_comes_back_as_it_was_saved(store):
    assert type(DEVICE).from_json(store.devices.get(DEVICE.fingerprint).profile) == DEVICE


def test_device_saved_again_is_replaced(store):
    changed = DEVICE.model_copy(update={"probe_seconds": 1.0})
    store.devices.save(changed)
    assert type(DEVICE).from_json(store.devices.get(DEVICE.fingerprint).profile) == changed
    assert len(store.devices.page().items) == 1


@pytest.mark.parametrize("lookup", ["devices", "models"])
def test_unknown_key_is_not_found(store, lookup):
    with pytest.raises(NotFoundError, match="feed"):
        getattr(store, lookup).get("feed")


def test_models_are_found_by_name(store):
    store.models.save(digest(1), "other.onnx", 5, '{"macs": 3}')
    assert [model.summary for model in store.models.page(name="other.onnx").items] == ['{"macs": 3}']


def test_model_name_is_stored_without_what_a_database_refuses(store):
    store.models.save(digest(1), "nul\0" + "x" * 2000, 5)
    name = store.models.get(digest(1)).name
    assert name.startswith("nul\ufffdxxx")
    assert len(name) == 1024


def test_pages_are_bounded_and_cover_everything_once(store):
    for number in range(7):
        store.models.save(digest(number), f"m{number}", number)
    seen, cursor = [], None
    while True:
        page = store.models.page(limit=3, cursor=cursor)
        assert len(page.items) <= 3
        seen += [model.name for model in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == [*(f"m{number}" for number in reversed(range(7))), "tiny.onnx"]


@pytest.mark.parametrize("limit", [0, -1, 201, 10**9])
def test_page_size_out_of_bounds_is_refused(store, limit):
    with pytest.raises(RecordFormatError, match=r"1\.\.200"):
        store.devices.page(limit=limit)


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.2", "99999999999999999999", "9223372036854775808", "1;drop"])
def test_cursor_that_no_page_gave_is_refused(store, cursor):
    with pytest.raises(RecordFormatError, match="cursor"):
        store.devices.page(cursor=cursor)


def test_plan_comes_back_as_it_was_saved(store):
    store.plans.save(plan())
    assert store.plans.get(plan().id, HERE).plan == plan()


def test_plan_of_an_unknown_device_is_not_stored(store):
    with pytest.raises(NotFoundError, match="device"):
        store.plans.save(plan(device_fingerprint=OTHER_DEVICE.fingerprint))
    assert store.plans.page(HERE).items == ()


def test_latest_plan_is_the_one_saved_last_even_if_saved_before(store):
    first, second = plan(why="one"), plan(why="two")
    for item in (first, second, first):
        store.plans.save(item)
    assert store.plans.latest(MODEL, first.request, HERE).plan.why == "one"
    assert len(store.plans.page(HERE).items) == 2


def test_the_newest_plan_of_each_request_stands(store):
    assert (store.plans.newest(), store.plans.standing(MODEL, HERE)) == (0, [])
    shapes = [(n, 3, 8, 8) for n in (1, 2)]
    asked = [[plan().inputs[0].model_copy(update={"shape": shape})] for shape in shapes]
    saved = [plan(inputs=tuple(inputs), why=why) for why in ("old", "new") for inputs in asked]
    for one in saved:
        store.plans.save(one)
    assert [found.plan.id for found in store.plans.standing(MODEL, HERE)] == [saved[3].id, saved[2].id]
    before = store.plans.newest()
    store.plans.save(plan(inputs=tuple(asked[0]), why="newer"))
    (found,) = store.plans.standing(MODEL, HERE, before)
    assert (found.plan.why, found.plan.inputs[0].shape, store.plans.newest() > before) == ("newer", shapes[0], True)
    (stale,) = store.plans.standing(MODEL, Here(DEVICE.fingerprint, Build("other", BUILD.kernels)), before)
    assert stale.plan.state.status == "stale"


def test_latest_plan_keeps_to_its_request(store):
    store.plans.save(plan(objective="memory"))
    with pytest.raises(NotFoundError, match="request"):
        store.plans.latest(MODEL, plan().request, HERE)


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (OTHER, "made for device"),
        (Here(DEVICE.fingerprint, Build("0.2.0+new", BUILD.kernels)), "engine build"),
        (Here(DEVICE.fingerprint, Build(BUILD.id, {**BUILD.kernels, "Relu": "feed0000"})), "source of Relu"),
    ],
    ids=["device", "build", "kernel"],
)
def test_plan_read_elsewhere_is_labelled_stale(store, here, reason):
    store.plans.save(plan())
    for found in (store.plans.get(plan().id, here), *store.plans.page(here).items):
        assert found.plan.state.status == "stale"
        assert reason in found.plan.state.reason


def test_plan_is_untouched_by_a_kernel_it_does_not_use(store):
    store.plans.save(plan())
    here = Here(DEVICE.fingerprint, Build(BUILD.id, {**BUILD.kernels, "Gemm": "feed0000"}))
    assert store.plans.get(plan().id, here).plan.state == State()


def test_plans_are_listed_by_model_and_device(store):
    store.devices.save(OTHER_DEVICE)
    store.models.save(digest(1), "b", 1)
    here, there = plan(), plan(device_fingerprint=OTHER_DEVICE.fingerprint)
    other = plan(model_digest=digest(1))
    for item in (here, there, other):
        store.plans.save(item)

    def ids(**wanted):
        return [found.plan.id for found in store.plans.page(HERE, **wanted).items]

    assert ids(model=MODEL) == [there.id, here.id]
    assert ids(device=DEVICE.fingerprint) == [other.id, here.id]
    assert ids(model=MODEL, device=DEVICE.fingerprint) == [here.id]
    assert len(ids()) == 3


def test_plan_learns_its_measured_time(store):
    store.plans.save(plan())
    store.plans.measured(plan().id, 123.5)
    assert store.plans.get(plan().id, HERE).plan.measured_ns == 123.5
    with pytest.raises(NotFoundError):
        store.plans.measured(digest(9), 1.0)


def test_measurement_comes_back_as_it_was_saved(store):
    store.measurements.save([measurement()])
    (found,) = store.measurements.page(HERE, signature=key("Conv(f32[1])")).items
    assert (found.measurement, found.fresh, found.reason) == (measurement(), True, "")


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        ({"samples": 11, "p50_ns": 1.0}, "second"),
        ({"samples": 9, "p50_ns": 1.0, "measured_us": 2_000_000_000_000_000}, "first"),
        ({"p50_ns": 1.0, "measured_us": 1_700_000_000_000_001}, "second"),
        ({"p50_ns": 1.0, "measured_us": 1_699_999_999_999_999}, "first"),
    ],
    ids=["more_samples", "fewer_but_newer", "as_many_and_newer", "as_many_and_older"],
)
@pytest.mark.parametrize("together", [True, False])
def test_of_two_measurements_the_better_evidence_is_kept(store, second, kept, together):
    items = [measurement(), measurement(**second)]
    for batch in [items] if together else [items[:1], items[1:]]:
        store.measurements.save(batch)
    (found,) = store.measurements.page(HERE).items
    assert found.measurement == items[0 if kept == "first" else 1]


def test_measurements_of_other_keys_stand_beside(store):
    store.devices.save(OTHER_DEVICE)
    items = [
        measurement(),
        measurement(strategy=dataclasses.replace(ROWS, threads=1)),
        measurement(engine_build="0.0.9+old"),
        measurement(kernel_source="abcdef00"),
        measurement(device_fingerprint=OTHER_DEVICE.fingerprint),
        measurement("Conv(f32[2])"),
    ]
    store.measurements.save(items)
    assert {found.measurement for found in store.measurements.page(HERE).items} == set(items)


def test_measurements_are_labelled_with_why_they_do_not_hold(store):
    store.devices.save(OTHER_DEVICE)
    store.measurements.save(
        [
            measurement(),
            measurement(engine_build="0.0.9+old"),
            measurement(kernel_source="abcdef00"),
            measurement(device_fingerprint=OTHER_DEVICE.fingerprint),
        ]
    )
    found = store.measurements.page(HERE).items
    fresh = [item for item in found if item.fresh]
    assert [item.measurement for item in fresh] == [measurement()]
    assert sorted(item.reason for item in found if not item.fresh) == [
        f"measured on device {OTHER_DEVICE.fingerprint}, this is {DEVICE.fingerprint}",
        f"measured with engine build 0.0.9+old, this is {BUILD.id}",
        "the source of Conv changed since",
    ]


def test_fresh_gives_only_what_holds_on_this_device_build_and_source(store):
    store.devices.save(OTHER_DEVICE)
    one = dataclasses.replace(ROWS, threads=1)
    store.measurements.save(
        [
            measurement(),
            measurement(strategy=one, p50_ns=150.0),
            measurement(engine_build="0.0.9+old", p50_ns=1.0),
            measurement(kernel_source="abcdef00", p50_ns=1.0),
            measurement(device_fingerprint=OTHER_DEVICE.fingerprint, p50_ns=1.0),
            measurement("Gemm(f32[1])", op="Gemm", kernel_source=BUILD.kernel_source("Conv"), p50_ns=1.0),
        ]
    )
    wanted = {key("Conv(f32[1])"): "Conv", key("Gemm(f32[1])"): "Gemm", key("Relu(f32[1])"): "Relu"}
    found = store.measurements.fresh(HERE, wanted)
    assert {name: {s: m.p50_ns for s, m in by.items()} for name, by in found.items()} == {
        key("Conv(f32[1])"): {ROWS: 100.0, one: 150.0}
    }


def test_fresh_knows_nothing_of_a_device_that_is_not_stored(store):
    assert store.measurements.fresh(OTHER, {key("Conv(f32[1])"): "Conv"}) == {}
    assert store.measurements.evidence(OTHER) == []
    assert store.measurements.newest(OTHER) == 0


def test_editing_one_kernels_source_invalidates_its_rows_only(store):
    gemm = measurement("Gemm(f32[1])", op="Gemm", kernel_source=BUILD.kernel_source("Gemm"))
    store.measurements.save([measurement(), gemm])
    edited = Here(DEVICE.fingerprint, Build(BUILD.id, {**BUILD.kernels, "Conv": "feed0000"}))
    assert {found.measurement.op: found.fresh for found in store.measurements.page(edited).items} == {"Conv": False, "Gemm": True}


def test_evidence_is_fresh_and_newest_first(store):
    for n in range(1, 6):
        store.measurements.save([measurement(f"Conv(f32[{n}])", p50_ns=float(n))])
    store.measurements.save([measurement("Conv(f32[9])", engine_build="0.0.9+old")])
    newest = store.measurements.newest(HERE)
    assert [item.p50_ns for item in store.measurements.evidence(HERE, limit=3)] == [5.0, 4.0, 3.0]
    assert {item.p50_ns for item in store.measurements.evidence(HERE)} == {1.0, 2.0, 3.0, 4.0, 5.0}
    store.measurements.save([measurement("Conv(f32[10])")])
    assert store.measurements.newest(HERE) > newest > 0


def test_strategies_are_looked_up_by_model(store):
    work = step()
    store.plans.save(plan())
    store.measurements.save(
        [
            measurement(work.signature),
            measurement(work.signature, strategy=Strategy("numpy", "slow", "fp32", 2)),
            measurement("Conv(f32[77])"),
        ]
    )
    first = store.measurements.page(HERE, device=DEVICE.fingerprint, model=MODEL, limit=1)
    rest = store.measurements.page(HERE, device=DEVICE.fingerprint, model=MODEL, limit=1, cursor=first.next)
    assert rest.next is None
    assert {page.items[0].measurement.strategy.algorithm for page in (first, rest)} == {"rows", "slow"}
    assert {page.items[0].measurement.signature for page in (first, rest)} == {work.signature}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_strategies_of_a_model_are_paged_signature_by_signature(store, limit):
    work = [step(f"n{n}", signature=f"Conv({n})", signature_key=key(f"Conv({n})")) for n in range(4)]
    store.plans.save(plan(steps=tuple(work)))
    items = [
        measurement(f"Conv({n})", strategy=Strategy("numpy", "rows", "fp32", threads)) for n in (0, 2, 3) for threads in (1, 2, 3)
    ]
    store.measurements.save([*items, measurement("Conv(9)")])
    seen, cursor = [], None
    while True:
        page = store.measurements.page(HERE, device=DEVICE.fingerprint, model=MODEL, limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        seen += [found.measurement for found in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert len(seen) == 9
    assert set(seen) == set(items)
    assert [item.signature for item in seen[::3]] == [item.signature for item in seen[2::3]]


def test_strategies_of_a_signature_and_a_model_at_once_are_refused(store):
    with pytest.raises(RecordFormatError, match="one of them"):
        store.measurements.page(HERE, signature=key("x"), model=MODEL)


def test_measurement_of_an_unknown_device_stores_nothing(store):
    with pytest.raises(NotFoundError, match="save its profile first"):
        store.measurements.save([measurement(), measurement(device_fingerprint="feedfeed")])
    assert store.measurements.page(HERE).items == ()


def test_lookup_of_an_unknown_signature_is_empty(store):
    assert store.measurements.page(HERE, signature=digest(1)).items == ()


def test_many_measurements_are_saved_in_one_go(store):
    items = [measurement(f"Conv(f32[{n}])") for n in range(1201)]
    store.measurements.save(items)
    assert len(store.measurements.fresh(HERE, {item.signature_key: "Conv" for item in items})) == 1201


def test_profile_run_comes_back_with_its_document(store):
    saved = report([run_op(0, p50_ns=55.5), run_op(1, "relu", op="Relu", p50_ns=1.0)], wall_p50_ns=70.0)
    found = store.profiles.get(store.profiles.save(saved, BUILD.id))
    run = found.run
    assert (run.kind, run.macs, run.flops, run.wall_p50_ns, run.first_ns, run.threads) == ("trace", 2000, 4020, 70.0, 700.0, 2)
    assert found.report == saved
    assert found.payload == saved.to_json()
    assert (run.model_digest, run.device, run.ops) == (MODEL, DEVICE.fingerprint, 2)


def test_profile_runs_are_listed_without_documents_by_model_device_and_kind(store):
    static = store.profiles.save(report(), BUILD.id)
    traced = store.profiles.save(report(wall_p50_ns=1.0), BUILD.id)
    listed = store.profiles.page(model=MODEL).items
    assert [(run.id, run.device) for run in listed] == [(traced, DEVICE.fingerprint), (static, None)]
    assert [run.id for run in store.profiles.page(device=DEVICE.fingerprint).items] == [traced]
    assert [run.id for run in store.profiles.page(kind="static").items] == [static]
    assert [run.kind for run in store.profiles.page().items] == ["trace", "static"]


def test_a_run_of_an_early_build_is_listed_and_its_document_kept(store):
    number = store.profiles.save(report(), BUILD.id)
    early = {"schema_version": 1, "payload": '{"schema_version":1}'}
    store._database.write(lambda session: session.execute(sa.update(ProfileRunRow).values(**early)))
    found = store.profiles.get(number)
    assert found.payload == '{"schema_version":1}'
    with pytest.raises(RecordFormatError, match="schema_version 1, need 2, profile again"):
        _ = found.report


def test_unknown_profile_run_is_not_found(store):
    with pytest.raises(NotFoundError, match="profile 7"):
        store.profiles.get(7)


def best_of(store, here=HERE, **asked):
    (found,) = store.measurements.best(here, **asked).items
    return found.measurement.p50_ns, found.fresh


def test_the_best_strategy_is_the_fastest_fresh_one(store):
    slow, fast = (Strategy("numpy", name, "fp32", 2) for name in ("slow", "fast"))
    store.measurements.save(
        [
            measurement(strategy=slow, min_ns=290.0, p50_ns=300.0),
            measurement(strategy=fast, min_ns=190.0, p50_ns=310.0),
            measurement(strategy=fast, min_ns=1.0, p50_ns=1.0, engine_build="0.0.9+old"),
            measurement(strategy=fast, min_ns=2.0, p50_ns=2.0, kernel_source="0ddba11f"),
        ]
    )
    assert best_of(store, signature=key("Conv(f32[1])")) == (310.0, True)  # by its fastest run, although its median is higher


def test_the_best_strategy_of_an_older_build_is_labelled(store):
    store.measurements.save([measurement(p50_ns=1.0, engine_build="0.0.8+older")])
    slow, fast = (Strategy("numpy", name, "fp32", 2) for name in ("slow", "fast"))
    store.measurements.save(
        [measurement(strategy=s, min_ns=p, p50_ns=p, engine_build="0.0.9+old") for s, p in ((fast, 20.0), (slow, 30.0))]
    )
    (found,) = store.measurements.best(HERE, signature=key("Conv(f32[1])")).items
    assert (found.measurement.p50_ns, found.fresh) == (20.0, False)
    assert "engine build 0.0.9+old" in found.reason


def test_the_best_strategies_of_a_model_are_paged(store):
    work = [step(f"n{n}", signature=f"Conv({n})", signature_key=key(f"Conv({n})")) for n in range(5)]
    store.plans.save(plan(steps=tuple(work)))
    store.devices.save(OTHER_DEVICE)
    store.measurements.save([measurement(f"Conv({n})", p50_ns=float(n)) for n in (0, 1, 2, 4)])
    store.measurements.save([measurement("Conv(3)", device_fingerprint=OTHER_DEVICE.fingerprint), measurement("Conv(9)")])
    seen, cursor = [], None
    while True:
        page = store.measurements.best(HERE, model=MODEL, limit=3, cursor=cursor)
        seen += [found.measurement.signature for found in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert sorted(seen) == ["Conv(0)", "Conv(1)", "Conv(2)", "Conv(4)"]
    assert [found.measurement.signature for found in store.measurements.best(OTHER, model=MODEL).items] == ["Conv(3)"]


@pytest.mark.parametrize("asked", [{}, {"signature": key("x"), "model": MODEL}])
def test_the_best_of_nothing_or_of_two_things_is_refused(store, asked):
    with pytest.raises(RecordFormatError, match="either a signature or a model"):
        store.measurements.best(HERE, **asked)


def test_a_plan_is_found_by_the_first_digits_of_its_id(store):
    store.plans.save(plan())
    whole = plan().id
    for digits in (8, 12, 63, 64):
        assert store.plans.get(whole[:digits], HERE).plan == plan()
    with pytest.raises(NotFoundError, match=f"plan {'0' * 12}: not stored"):
        store.plans.get("0" * 12, HERE)
    for named in (whole[:7], whole + "0", "not hexadecimal", "%", ""):
        with pytest.raises(NotFoundError, match="need 8 to 64 hexadecimal digits"):
            store.plans.get(named, HERE)


def test_digits_that_several_ids_begin_with_name_none(store, monkeypatch):
    others = [plan(threads=threads) for threads in (1, 3)]
    for number, other in enumerate(others):
        monkeypatch.setattr(type(other), "id", property(lambda _plan, number=number: f"{number}".rjust(64, "a")))
        store.plans.save(other)
    with pytest.raises(NotFoundError, match="several plans begin so, give more digits"):
        store.plans.get("a" * 12, HERE)
