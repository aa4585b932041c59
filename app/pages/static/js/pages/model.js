// One model: shows a stored run, or the model's counts without a run.

import { Problem, address, get, list } from "../api.js";
import { el, failure, fill, notice } from "../dom.js";
import { duration, when } from "../format.js";
import { read, write } from "../state.js";
import { showRun } from "../views/run.js";

const COUNT = "count";
const MOST_RUNS = 200; // in the picker

const { name, version, digest } = document.getElementById("model").dataset;
const picker = document.getElementById("run-picker");
const links = document.getElementById("run-links");
const place = document.getElementById("run");
let shown = null;
let asked = null; // the run that is read or shown

async function start() {
  let runs = [];
  try {
    runs = await list("/v1/profiles", { model: digest, kind: "trace" }, MOST_RUNS);
  } catch (error) {
    place.before(failure("The stored runs could not be read", error));
  }
  fill(
    picker,
    el("option", { value: COUNT }, "Count only, nothing measured"),
    el(
      "optgroup",
      { label: "Measured runs" },
      runs.map((run) => el("option", { value: String(run.id) }, described(run))),
    ),
  );
  picker.disabled = false;
  const usual = runs.length ? String(runs[0].id) : COUNT;
  const wanted = () => read().run ?? usual;
  picker.addEventListener("change", () => {
    write({ run: picker.value, op: null, at: null }, { step: true });
    load(picker.value);
  });
  addEventListener("popstate", () => (wanted() === asked ? shown?.follow(read()) : load(wanted())));
  await load(wanted());
}

const described = (run) =>
  [
    `#${run.id}`,
    when(run.created_us),
    duration(run.wall_p50_ns),
    `${run.threads} thread${run.threads === 1 ? "" : "s"}`,
    run.precision,
    run.problems ? `${run.problems} above the roof` : "",
  ]
    .filter(Boolean)
    .join(" · ");

async function load(run) {
  asked = run;
  if (![...picker.options].some((option) => option.value === run)) picker.append(el("option", { value: run }, `#${run}`)); // older than those listed
  picker.value = run;
  fill(place, el("p", { class: "skeleton", role: "status" }, run === COUNT ? "Counting…" : "Reading the run…"));
  try {
    const report =
      run === COUNT
        ? await get(`/v1/models/${encodeURIComponent(name)}/count`, { version })
        : (await get(`/v1/profiles/${encodeURIComponent(run)}`)).profile;
    if (run !== asked) return; // another run was picked in the meantime
    if (report.schema_version !== 2)
      throw new Problem(0, "It was stored by an earlier build in a format that is no longer read. Profile the model again.");
    shown = showRun(report, { traceHref: report.timeline ? `/v1/profiles/${run}/trace` : null });
    fill(links, run === COUNT ? null : linksOf(run));
    fill(
      place,
      report.model.digest === digest
        ? null
        : notice("info", "This run is of another model", `It was measured on ${report.model.name}.`),
      shown.element,
    );
  } catch (error) {
    if (run === asked)
      fill(place, failure(run === COUNT ? "The model could not be counted" : `Run ${run} could not be read`, error));
  }
}

const linksOf = (run) => [
  el("a", { class: "button", href: address("/compare", { runs: run }) }, "Compare"),
  el("a", { class: "button", href: `/v1/profiles/${run}`, download: `run-${run}.json` }, "JSON"),
  el(
    "a",
    { class: "button", href: address("/v1/profiles/query", { run, format: "csv", limit: 500 }), download: `run-${run}.csv` },
    "CSV",
  ),
];

start();
