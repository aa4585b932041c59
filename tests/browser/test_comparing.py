"""Tests of the pages that compare runs and list runs that became slower, as a reader uses them."""

import json
import re

from playwright.sync_api import BrowserContext, Locator, Page, expect

from bench.dashboard.models import EXPORT
from bench.dashboard.pages import settled
from bench.dashboard.site import SLOWDOWN, Site
from scheduler.plan import Plan
from scheduler.store import Store
from tests.browser.shown import cells, say
from tests.browser.watching import Watch
from tests.profiler.devices import device, hardware


def signed(page: Page, delta_ns: float) -> str:
    """Return a change of time as the page writes it, with its sign."""
    return ("+" if delta_ns > 0 else "") + say(page, "duration", delta_ns)


def assert_shows(page: Page, served: Site, *runs: int) -> None:
    """Assert that the page's rows show the values that /v1/compare returns for these runs."""
    numbers = ",".join(map(str, runs))
    rows = {row["name"]: row for row in served.client.get("/v1/compare", params={"runs": numbers}).json()["rows"]}
    names = cells(page, "Op")
    assert len(names) > 10
    for at, run in enumerate(runs):
        assert cells(page, f"Run {run}") == [say(page, "duration", rows[name]["p50_ns"][at]) for name in names]
    assert cells(page, "Change") == [signed(page, rows[name]["delta_ns"]) for name in names]
    assert cells(page, "Last ÷ first") == [say(page, "ratio", rows[name]["ratio"]) for name in names]


def choose(page: Page, run: int) -> None:
    page.get_by_label("Add a run").select_option(str(run))
    expect(page).to_have_url(re.compile(rf"runs=(\d+%2C)*{run}$"))
    settled(page)


def test_two_runs_are_chosen_and_their_changes_are_the_apis(watch: Watch, served: Site) -> None:
    page = watch.open("/compare")
    expect(page.get_by_text("Choose two runs or more")).to_be_visible()
    choose(page, served.slowed[0])
    choose(page, served.slowed[1])
    assert_shows(page, served, served.slowed[0], served.slowed[1])
    totals = page.get_by_role("region", name="Totals of the runs")
    expect(totals.get_by_role("row", name=re.compile("Median of a run"))).to_contain_text(say(page, "ratio", SLOWDOWN))


def test_the_baseline_is_changed_and_a_run_left_out(watch: Watch, served: Site) -> None:
    (first, slow), second = served.slowed, served.runs[1]
    page = watch.open(f"/compare?runs={first},{second},{slow}")
    page.get_by_role("button", name=f"Make run {slow} the baseline").click()
    expect(page).to_have_url(re.compile(f"runs={slow}%2C{first}%2C{second}"))
    settled(page)
    page.get_by_role("button", name=f"Leave out run {second}").click()
    expect(page).to_have_url(re.compile(f"runs={slow}%2C{first}$"))
    settled(page)
    assert_shows(page, served, slow, first)
    page.go_back()
    expect(page.get_by_role("button", name=f"Leave out run {second}")).to_be_visible()


def test_a_comparison_that_is_sorted_and_searched_can_be_sent_to_somebody(watch: Watch, served: Site) -> None:
    page = watch.open(f"/compare?runs={served.slowed[0]},{served.slowed[1]}")
    page.get_by_role("button", name=f"Run {served.slowed[1]}", exact=True).click()
    page.get_by_role("searchbox", name="Search ops").fill("features.1")
    expect(page).to_have_url(re.compile(f"sort=-p50-{served.slowed[1]}.*q=features.1"))
    stored = served.client.get(f"/v1/profiles/{served.slowed[1]}").json()["profile"]
    wanted = sorted((op["p50_ns"] for op in stored["ops"] if "features.1" in op["name"]), reverse=True)
    expect(page.locator(".grid")).to_have_attribute("aria-rowcount", str(len(wanted) + 1))
    shown = cells(page, f"Run {served.slowed[1]}")
    assert shown == [say(page, "duration", ns) for ns in wanted[: len(shown)]]
    other = _another(page.context, page.url)
    assert (cells(other, "Op"), cells(other, "Change")) == (cells(page, "Op"), cells(page, "Change"))
    other.close()


def test_a_slower_run_is_a_regression_until_more_is_asked_for(watch: Watch, served: Site) -> None:
    page = watch.open(f"/regressions?model={EXPORT}")
    (found,) = (one for one in _regressions(served, 5) if one["after"]["id"] == served.slowed[1])
    card = _card(page, served)
    expect(card).to_contain_text(say(page, "percent", found["growth_percent"]))
    grown = card.get_by_role("row").filter(has_text=found["ops"][0]["name"])
    expect(grown).to_contain_text(say(page, "duration", found["ops"][0]["after_ns"]))
    _threshold(page, 100 * (SLOWDOWN - 1) + 1)
    expect(card).to_have_count(0)
    assert served.slowed[1] not in [one["after"]["id"] for one in _regressions(served, 100 * (SLOWDOWN - 1) + 1)]
    page.reload()
    settled(page)
    expect(card).to_have_count(0)
    _threshold(page, 100 * (SLOWDOWN - 1) - 1)
    expect(card).to_be_visible()


def test_regressions_are_of_the_model_that_is_chosen(watch: Watch, served: Site) -> None:
    page = watch.open(f"/regressions?model={EXPORT}")
    expect(_card(page, served)).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("long")
    expect(page.get_by_text("This model was never measured")).to_be_visible()
    expect(_card(page, served)).to_have_count(0)


def test_a_regression_leads_to_the_comparison_of_its_runs(watch: Watch, served: Site) -> None:
    page = watch.open(f"/regressions?model={EXPORT}")
    _card(page, served).get_by_role("link", name="Compare the two").click()
    expect(page).to_have_url(re.compile(rf"/compare\?runs=\d+,{served.slowed[1]}"))
    settled(page)
    assert_shows(page, served, served.slowed[0], served.slowed[1])


def _regressions(served: Site, threshold_percent: float) -> list[dict]:
    digest = served.client.get(f"/v1/models/{EXPORT}").json()["digest"]
    asked = {"model": digest, "threshold_percent": threshold_percent}
    found: list[dict] = served.client.get("/v1/regressions", params=asked).json()["items"]
    return found


def _card(page: Page, served: Site) -> Locator:
    return page.get_by_role("region", name=f"Run {served.slowed[1]}", exact=True)


def _threshold(page: Page, percent: float) -> None:
    page.get_by_label(re.compile("Slower by more than")).fill(str(percent))
    page.get_by_role("button", name="Apply").click()
    expect(page).to_have_url(re.compile(f"threshold={percent}"))
    settled(page)


def _another(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    settled(page)
    return page


def test_the_pareto_page_keeps_devices_apart_and_explains_its_colours(watch: Watch, served: Site) -> None:
    far = device(hardware=hardware(model="Board 7"))
    here = served.client.get(f"/v1/plans/{served.plan}").json()["plan"]
    changed = {"device_fingerprint": far.fingerprint, "device_name": far.name, "predicted_ns": 1.0}
    elsewhere = Plan.model_validate_json(json.dumps({**here, **changed}))
    with Store(served.db) as store:
        store.devices.save(far)
        store.plans.save(elsewhere)
    page = watch.open(f"/pareto?model={EXPORT}")
    expect(page.get_by_label("Device")).to_have_value(served.device)
    expect(page.locator(".legend")).to_contain_text("on the Pareto front, predicted")
    assert served.plan[:12] in cells(page, "Plan")
    assert elsewhere.id[:12] not in cells(page, "Plan")
    page.get_by_label("Device").select_option(far.fingerprint)
    expect(page.locator(".grid")).to_contain_text(elsewhere.id[:12])
    assert served.plan[:12] not in cells(page, "Plan")
