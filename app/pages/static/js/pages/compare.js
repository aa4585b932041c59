// Runs side by side: totals, op types, and op by op.

import { get, list } from "../api.js";
import { bars } from "../bars.js";
import { el, failure, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { deviceLink, field, part, plain, planLink } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";

const TOTALS = [
  ["wall_p50_ns", "Median of a run", format.duration],
  ["wall_p90_ns", "90th percentile", format.duration],
  ["wall_min_ns", "Fastest", format.duration],
  ["first_ns", "First run, cold", format.duration],
  ["predicted_ns", "Predicted", format.duration],
  ["roof_ns", "Roof", format.duration],
  ["wasted_ns", "Above the roof", format.duration],
  ["macs", "MACs", format.macs],
  ["flops", "FLOPs", format.flops],
  ["peak_activation_bytes", "Activations at the peak", format.bytes],
  ["problems", "Problems of the self-check", format.count],
];
const MOST_RUNS = 8;

let runs = [];
let shown = null; // the runs requested last
let forget = () => {}; // the table of runs that were shown before
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
  const what =
    run.kind === "trace"
      ? `${run.device_name ?? run.device}, ${run.threads} thread${run.threads > 1 ? "s" : ""}, ${format.duration(run.wall_p50_ns)}`
      : "counted only";
  return `${run.id}: ${run.model_name}, ${what}, ${format.when(run.created_us)}`;
}

function pick() {
  if (!runs.length)
    return notice(
      "info",
      "No run is stored yet",
      "Count or measure a model on its Work page. ",
      el("a", { href: "/" }, "Models"),
    );
  const taken = chosen();
  const groups = Map.groupBy(
    runs.filter((run) => !taken.includes(String(run.id))),
    (run) => run.model_name,
  );
  const select = el(
    "select",
    { onchange: () => write({ runs: [...taken, select.value].join(",") }, { step: true }) },
    el("option", { value: "" }, taken.length ? "choose another run" : "choose a run"),
    [...groups].map(([model, items]) =>
      el(
        "optgroup",
        { label: model },
        items.map((run) => el("option", { value: String(run.id) }, name(run))),
      ),
    ),
  );
  const chips = taken.map((id) => {
    const run = runs.find((other) => String(other.id) === id);
    const others = taken.filter((other) => other !== id);
    const lead = () => write({ runs: [id, ...others].join(",") }, { step: true });
    const drop = () => write({ runs: others.join(",") }, { step: true });
    return el(
      "li",
      {},
      run ? name(run) : `run ${id}`,
      " ",
      id === taken[0]
        ? el("strong", {}, "baseline")
        : el("button", { type: "button", "aria-label": `Make run ${id} the baseline`, onclick: lead }, "baseline"),
      el("button", { type: "button", "aria-label": `Leave out run ${id}`, onclick: drop }, "✕"),
    );
  });
  return [
    chips.length ? el("ol", { class: "chips", "aria-label": "Runs that are compared" }, chips) : null,
    taken.length < MOST_RUNS ? el("form", { class: "form row" }, field("Add a run", select)) : null,
  ];
}

async function show() {
  const taken = chosen();
  if (taken.join() === shown) return;
  shown = taken.join();
  forget();
  if (runs.length) fill(document.getElementById("picker"), pick());
  if (taken.length < 2) {
    fill(
      document.getElementById("comparison"),
      runs.length ? notice("info", "Choose two runs or more", "The others are compared with the baseline.") : null,
    );
    return;
  }
  await part("comparison", "The runs cannot be compared", async () => {
    const [found, ...types] = await Promise.allSettled([
      get("/v1/compare", { runs: shown }),
      ...taken.map((run) => get("/v1/profiles/query", { run, group: "op", sort: "-p50_ns", limit: 50 })),
    ]);
    if (found.status === "rejected") throw found.reason;
    return [
      totals(found.value),
      el("h2", {}, "Op by op"),
      ...ops(found.value),
      el("h2", {}, "By op type"),
      byType(found.value, types),
    ];
  });
}

/** The totals of every run, each with its ratio to the first run's. */
function totals({ runs: compared, ratios }) {
  const known = TOTALS.filter(([key]) => compared.some((run) => run[key] != null));
  const beside = (key, at) => {
    const ratio = at ? ratios?.[key]?.[at] : null;
    return ratio == null
      ? null
      : el("small", { class: ratio > 1.005 ? "worse" : ratio < 0.995 ? "better" : "quiet" }, ` ${format.ratio(ratio)}`);
  };
  const facts = [
    ["Device", (run) => (run.device ? deviceLink(run.device, run.device_name ?? run.device) : null)],
    ["Threads", (run) => run.threads?.toString()],
    ["Precision", (run) => run.precision],
    [
      "Plan",
      (run) => (/^[0-9a-f]{64}$/.test(run.plan_id ?? "") ? planLink(run.plan_id) : run.kind === "trace" ? "default" : null),
    ],
    ["Engine build", (run) => el("code", {}, run.engine_build.split(".").at(-1))],
  ];
  return plain(
    "Totals of the runs",
    ["", ...compared.map((run) => ({ text: runLink(run), n: true }))],
    [
      ...facts.map(([title, of]) => [title, ...compared.map(of)]),
      ...known.map(([key, title, say]) => [title, ...compared.map((run, at) => el("span", {}, say(run[key]), beside(key, at)))]),
    ],
  );
}

function runLink(run) {
  return el("a", { href: `/models/${encodeURIComponent(run.model_name)}?run=${run.id}` }, `run ${run.id}: ${run.model_name}`);
}

function ops({ runs: compared, rows }) {
  const most = Math.max(...rows.map((row) => Math.abs(row.delta_ns ?? 0)));
  const timed = rows.some((row) => row.p50_ns.some((ns) => ns != null));
  const missing = rows.filter((row) => row.flops.includes(null)).length;
  const columns = [
    { key: "name", title: "Op" },
    { key: "op", title: "Type" },
    ...compared.map((run, at) => ({
      key: `p50-${run.id}`,
      title: `Run ${run.id}`,
      numeric: true,
      value: (row) => row.p50_ns[at],
      hidden: !timed,
      format: (value, row) => (row.flops[at] == null ? "not in this run" : format.duration(value)),
    })),
    {
      key: "delta_ns",
      title: "Change",
      numeric: true,
      hidden: !timed,
      format: (value) => (value > 0 ? `+${format.duration(value)}` : format.duration(value)),
      part: (row) => (row.delta_ns > 0 && most ? row.delta_ns / most : null),
      about: "Time of the last run minus that of the first",
    },
    { key: "ratio", title: "Last ÷ first", numeric: true, hidden: !timed, format: format.ratio },
    ...compared.map((run, at) => ({
      key: `flops-${run.id}`,
      title: `FLOPs, run ${run.id}`,
      numeric: true,
      value: (row) => row.flops[at],
      format: format.flops,
      hidden: timed,
    })),
    ...compared.map((run, at) => ({
      key: `strategy-${run.id}`,
      title: `Strategy, run ${run.id}`,
      value: (row) => row.strategy[at],
      format: (value) => value || "–",
      hidden: !timed,
    })),
  ];
  const { sort = timed ? "-delta_ns" : "", q, cols } = read();
  const grid = table(columns, rows, {
    label: "Ops of the runs",
    noun: "op",
    sort,
    q,
    cols,
    onState: write,
    id: (row) => row.key,
  });
  forget = onChange((state) => grid.show({ sort: timed ? "-delta_ns" : "", ...state }));
  return [missing ? el("p", {}, `Not in every run: ${missing} of ${rows.length} ops.`) : null, grid.element];
}

function byType({ runs: compared }, types) {
  return el(
    "div",
    { class: "works" },
    compared.map((run, at) => {
      const title = el("h3", {}, runLink(run));
      if (types[at].status === "rejected")
        return el("section", {}, title, failure("The op types cannot be read", types[at].reason));
      const { items } = types[at].value;
      const timed = run.kind === "trace";
      return el(
        "section",
        { "aria-label": `Run ${run.id} by op type` },
        title,
        bars(
          timed ? `Time by op type, run ${run.id}` : `FLOPs by op type, run ${run.id}`,
          items.map((item) => ({
            name: item.group,
            value: timed ? item.p50_ns : item.flops,
            text: timed ? format.duration(item.p50_ns) : format.flops(item.flops),
            note: `${format.percent(item.share_percent)} · ${item.rows} op${item.rows === 1 ? "" : "s"}`,
          })),
        ),
      );
    }),
  );
}
