"""The address of every page of the dashboard, and a wait until a page shows all its data."""

import shutil

from playwright.sync_api import Page

from bench.dashboard.models import EXPORT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # the system's own
VIEWS = ("table", "graph", "roofline", "types", "memory", "timeline")
PAGES = {
    "overview": "/",
    **{view: f"/models/{EXPORT}?run={{runs[0]}}&view={view}" for view in VIEWS},
    "counted": "/models/digits?run=count",
    "work": f"/models/{EXPORT}/work",
    "plans": "/plans",
    "plan": "/plans/{plan}",
    "pareto": f"/pareto?model={EXPORT}",
    "devices": "/devices",
    "device": "/devices/{device}",
    "jobs": "/jobs",
    "job": "/jobs/{jobs[1]}",
    "compare": "/compare?runs={runs[0]},{runs[1]}",
    "regressions": f"/regressions?model={EXPORT}",
    "upload": "/upload",
}


def settled(page: Page) -> None:
    """Wait until the page has loaded, its script has run, and all its requests are answered."""
    page.wait_for_function("() => document.readyState === 'complete' && !document.querySelector('.skeleton, [aria-busy=true]')")
