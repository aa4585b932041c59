"""Batch times are forecast by plans. A stored plan for the batch size is used; otherwise one is made and not stored."""

from pathlib import Path

from app.settings import DEMO_MODELS
from graph.formats.onnx.reader import read
from profiler.device.profile import DeviceProfile
from scheduler.planning.forecast import forecast
from scheduler.planning.planner import make_plan
from scheduler.store import Store


def test_stored_plans_come_first_and_the_others_are_made(tmp_path: Path, this_machine: DeviceProfile) -> None:
    model = read(DEMO_MODELS / "digits.onnx")
    shapes = {rows: {"image": (rows, 1, 8, 8)} for rows in (1, 2, 4)}
    with Store(f"sqlite:///{tmp_path / 'db.sqlite'}") as store:
        store.devices.save(device := this_machine)
        made = forecast(model, shapes, 1, device, store)
        assert made == {rows: make_plan(model, device, shapes=shapes[rows], max_threads=1).predicted_ns for rows in shapes}
        assert made[1] < made[2] < made[4] < 4 * made[1]
        store.models.save(model.digest, model.source, model.nbytes)
        for limit, rows, measured_ns in ((1, 2, 7.0), (None, 4, 9.0)):
            plan = make_plan(model, device, shapes=shapes[rows], max_threads=limit, store=store)
            store.plans.save(plan)
            store.plans.measured(plan.id, measured_ns)
        found = forecast(model, shapes, 1, device, store)
        assert (found[1], found[2]) == (made[1], 7.0)
        assert found[4] == (9.0 if plan.threads == 1 else made[4])
