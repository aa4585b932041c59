"""Tests of a run's page as a reader uses it: figures, sorting, search, columns, the URL, the keyboard, thousands of ops."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from bench.dashboard.models import EXPORT
from bench.dashboard.pages import settled
from bench.dashboard.site import Site
from profiler.device.quiet import Level, Quietness
from scheduler.build import current_build
from scheduler.store import Store
from tests.browser.shown import cells, say
from tests.browser.watching import Watch
from tests.processes import edgewise
from tests.profiler.devices import device, hardware


def run_path(served: Site, number: int | str | None = None, **query: object) -> str:
    return f"/models/{EXPORT}?" + "&".join(f"{k}={v}" for k, v in {"run": number or served.runs[0], **query}.items())


def test_figures_of_the_page_are_the_apis_and_the_command_lines(watch: Watch, served: Site, tmp_path: Path) -> None:
    own_lock = {"XDG_DATA_HOME": str(tmp_path)}  # other measurements of this machine are not waited for
    done = edgewise("profile", str(served.model), "--measure", "--runs", "5", "--db", served.db, "--json", environment=own_lock)
    printed, stored_as = json.loads(done.stdout), re.search(r"stored as profile (\d+)", done.stderr)
    assert stored_as is not None, done.stderr
    number = int(stored_as[1])
    stored = served.client.get(f"/v1/profiles/{number}").json()["profile"]
    assert stored == printed
    page = watch.open(run_path(served, number, sort="index", cols="name,p50_ns,wasted_ns,macs,moved_bytes"))
    ops = {op["name"]: op for op in stored["ops"]}
    shown = zip(*(cells(page, title) for title in ("Op", "Time, p50", "Wasted", "MACs", "Moved")), strict=True)
    seen = 0
    for name, time, wasted, macs, moved in shown:
        op, seen = ops[name], seen + 1
        assert time == say(page, "duration", op["p50_ns"])
        assert wasted == say(page, "duration", op["wasted_ns"])
        assert macs == say(page, "count", op["macs"])
        assert moved == say(page, "bytes", op["moved_bytes"])
    assert seen > 10
    totals = page.locator(".figures").first.inner_text()
    for kind, key in (("duration", "wall_p50_ns"), ("macs", "macs"), ("bytes", "peak_activation_bytes")):
        assert say(page, kind, stored["totals"][key]) in totals


def test_figures_of_a_count_are_the_apis_and_the_command_lines(watch: Watch, served: Site) -> None:
    counted = json.loads(edgewise("profile", str(served.model), "--json").stdout)
    answered = served.client.get(f"/v1/models/{EXPORT}/count").json()
    assert (counted["totals"], counted["ops"]) == (answered["totals"], answered["ops"])
    page = watch.open(run_path(served, "count"))
    assert say(page, "macs", counted["totals"]["macs"]) in page.locator(".figures").first.inner_text()


def test_sorting_searching_and_columns_are_in_the_url_and_survive_a_reload(watch: Watch, served: Site) -> None:
    page = watch.open(run_path(served))
    page.get_by_role("button", name="MACs", exact=True).click()
    page.get_by_role("searchbox", name="Search ops").fill("features.3/")
    page.get_by_text("Columns", exact=True).click()
    page.get_by_role("checkbox", name="Backend").check()
    expect(page).to_have_url(re.compile("sort=-macs.*q=features\\.3.*cols=|cols="))
    before = (page.url, cells(page, "Op"), cells(page, "Backend"))
    macs = [int(text.replace(",", "")) for text in cells(page, "MACs")]
    assert macs == sorted(macs, reverse=True)
    assert before[1]
    assert all("features.3/" in name for name in before[1])
    page.reload()
    settled(page)
    assert (page.url, cells(page, "Op"), cells(page, "Backend")) == before


def test_back_undoes_a_view(watch: Watch, served: Site) -> None:
    page = watch.open(run_path(served))
    page.get_by_role("tab", name="Memory").click()
    expect(page).to_have_url(re.compile("view=memory"))
    page.go_back()
    expect(page.get_by_role("tab", name="Table")).to_have_attribute("aria-selected", "true")


def test_the_keyboard_reaches_everything(watch: Watch, served: Site) -> None:
    page = watch.open(run_path(served))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    tab = page.get_by_role("tab", name="Table")
    for _ in range(30):
        page.keyboard.press("Tab")
        if tab.evaluate("element => element === document.activeElement"):
            break
    expect(tab).to_be_focused()
    for name in ("Graph", "Roofline", "By type", "Memory", "Timeline", "Table"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    page.locator(".grid [tabindex='0']").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".op-panel")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".op-panel")).to_be_hidden()


def test_ops_above_the_roof_are_said(watch: Watch, served: Site) -> None:
    page = watch.open(run_path(served, served.impossible))
    check = served.client.get(f"/v1/profiles/{served.impossible}").json()["profile"]["check"]
    expect(page.locator("#check")).to_contain_text(f"{len(check['problems'])} op")
    expect(page.locator("#check")).to_contain_text(check["problems"][0]["reason"])
    usual = served.client.get(f"/v1/profiles/{served.runs[0]}").json()["profile"]["check"]
    watch.open(run_path(served))
    expect(page.locator("#check")).to_have_count(0 if usual["ok"] else 1)


@pytest.mark.parametrize("view", ["table", "graph", "memory", "types"])
def test_two_thousand_ops(watch: Watch, served: Site, view: str) -> None:
    page = watch.open(f"/models/long?run={served.counted}&view={view}")
    panel = page.locator(f"#panel-{view}")
    expect(panel).to_be_visible()
    if view != "table":
        return
    rows = page.locator(".grid [role=row]")
    expect(page.locator(".grid")).to_have_attribute("aria-rowcount", "2001")
    assert rows.count() < 200
    page.locator(".grid-box").evaluate("box => box.scrollTo(0, box.scrollHeight)")
    expect(page.get_by_role("link", name="step1999")).to_be_visible()
    assert rows.count() < 200


@pytest.mark.parametrize("level", ["busy", "disturbed"])
def test_a_run_that_other_work_disturbed_says_so(watch: Watch, served: Site, level: Level) -> None:
    seen = Quietness(level=level, reasons=("other processes used 1.9 of 2 cores",), lost=0.9)
    with Store(served.db) as store:
        usual = store.profiles.get(served.counted).report
        number = store.profiles.save(usual.model_copy(update={"quietness": seen}), current_build().id)
    page = watch.open(f"/models/long?run={number}")
    box = page.locator("#quietness")
    expect(box).to_contain_text(f"The machine was {level} with other work")
    expect(box).to_contain_text("other processes used 1.9 of 2 cores.")
    expect(box).to_have_role("alert" if level == "busy" else "status")


def test_a_device_that_was_busy_when_it_was_measured_says_so(watch: Watch, served: Site) -> None:
    seen = Quietness(level="busy", reasons=("its threads waited for a core 50% of the time",), lost=0.5)
    steady = device().stability.model_copy(update={"quietness": seen})
    found = device(hardware=hardware(model="Busy"), stability=steady)
    with Store(served.db) as store:
        store.devices.save(found)
    page = watch.open(f"/devices/{found.fingerprint}")
    expect(page.get_by_role("alert")).to_contain_text("its threads waited for a core 50% of the time.")
