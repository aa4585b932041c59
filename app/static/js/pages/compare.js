// Runs side by side: totals, op types, and op by op.

import { get, list } from "../api.js";
import { bars } from "../bars.js";
import { clear, el, failure, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { deviceLink, field, part, plain, planLink } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";

const TOTALS = [
  ["wall_p50_ns", "Median of a run", format.duration], ["wall_p90_ns", "90th percentile", format.duration], ["wall_min_ns", "Fastest", format.duration],
  ["first_ns", "First run, cold", format.duration], ["predicted_ns", "Predicted", format.duration], ["roof_ns", "Roof", format.duration], ["wasted_ns", "Above the roof", format.duration],
  ["macs", "MACs", format.macs], ["flops", "FLOPs", format.flops], ["peak_activation_bytes", "Activations at the peak", format.bytes], ["problems", "Problems of the self-check", format.count],
];
const MOST_RUNS = 8;

let runs = [];
let shown = "";
await part("picker", "The runs cannot be read", async () => {
  runs = await list("/v1/profiles", {}, 400);
  return pick();
});
onChange(show);
await show();

function chosen() {
  return (read().runs ?? "").split(",").filter((text) => /^\d+$/.test(text));
}

function name(run) {
  const what = run.kind === "trace" ? `${run.device_name ?? run.device}, ${run.threads} thread${run.threads > 1 ? "s" : ""}, ${format.duration(run.wall_p50_ns)}` : "counted only";
  return `${run.id}: ${run.model_name}, ${what}, ${format.when(run.created_us)}`;
}

function pick() {
  if (!runs.length) return notice("info", "No run is stored yet", "Count or measure a model on its Work page. ", el("a", { href: "/" }, "Models"));
  const taken = chosen();
  const groups = Map.groupBy(runs.filter((run) => !taken.includes(String(run.id))), (run) => run.model_name);
  const select = el("select", { onchange: () => write({ runs: [...taken, select.value].join(",") }, { step: true }) },
    el("option", { value: "" }, taken.length ? "choose another run" : "choose a run"),
    [...groups].map(([model, items]) => el("optgroup", { label: model }, items.map((run) => el("option", { value: String(run.id) }, name(run))))));
  const chips = taken.map((id) => {
    const run = runs.find((other) => String(other.id) === id);
    const drop = () => write({ runs: taken.filter((other) => other !== id).join(",") }, { step: true });
    return el("li", {}, run ? name(run) : `run ${id}`, " ", el("button", { type: "button", "aria-label": `Leave out run ${id}`, onclick: drop }, "✕"));
  });
  return [chips.length ? el("ol", { class: "chips", "aria-label": "Runs that are compared" }, chips) : null, taken.length < MOST_RUNS ? el("form", { class: "form row" }, field("Add a run", select)) : null];
}

async function show() {
  const taken = chosen();
  if (taken.join() === shown) return;
  shown = taken.join();
  if (runs.length) fill(document.getElementById("picker"), pick());
  if (taken.length < 2) {
    fill(document.getElementById("comparison"), runs.length ? notice("info", "Choose two runs or more", "The first one is what the others are compared with.") : null);
    return;
  }
  await part("comparison", "The runs cannot be compared", async () => {
    const [found, ...types] = await Promise.all([get("/v1/compare", { runs: shown }), ...taken.map((run) => get("/v1/profiles/query", { run, group: "op", sort: "-p50_ns", limit: 50 }))]);
    return [totals(found), el("h2", {}, "Op by op"), ops(found), el("h2", {}, "By op type"), byType(found, types)];
  });
}
