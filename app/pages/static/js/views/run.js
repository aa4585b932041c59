// One run: its totals, its self-check, and its views. Used by the model page and by static reports.

import { disturbed, el, figures, notice } from "../dom.js";
import { percent, when } from "../format.js";
import { read, write } from "../state.js";
import { table } from "../table.js";
import { tabs } from "../tabs.js";
import { columns, panel, totals } from "./figures.js";
import { graph } from "./graph.js";
import { memory } from "./memory.js";
import { roofline } from "./roofline.js";
import { timeline } from "./timeline.js";
import { types } from "./types.js";

/** showRun(document, {traceHref}) → {element, follow(state)}. `follow` shows what the URL says, after Back for example. */
export function showRun(run, { traceHref = null } = {}) {
  const now = read();
  const side = panel(run, { onClose: () => open(null), onShow: (index) => open(index) });
  const ops = table(columns(run), run.ops, {
    label: "Ops",
    noun: "op",
    id: (op) => op.index,
    href: (op) => `?${new URLSearchParams({ ...read(), op: op.index })}`,
    onOpen: (op) => open(op.index),
    mark: (op) => (op.contradiction || !op.counted ? "bad" : ""),
    ...tableState(now),
    sort: now.sort ?? usualSort(run),
    onState: ({ sort, q, cols }) => write({ sort: sort === usualSort(run) ? null : sort || "index", q, cols }),
  });
  const picture = { made: null };
  const views = tabs(
    "Views of this run",
    [
      { id: "table", title: "Table", panel: () => ops.element },
      {
        id: "graph",
        title: "Graph",
        panel: () => (picture.made = graph(run, { colour: now.colour, onOpen: open, onState: write })).element,
      },
      { id: "roofline", title: "Roofline", panel: () => roofline(run, { onOpen: open }) },
      { id: "types", title: "By type", panel: () => types(run, { by: now.by, onState: write }) },
      {
        id: "memory",
        title: "Memory",
        panel: () => memory(run, { at: now.at == null ? null : Number(now.at), onState: write, onOpen: open }),
      },
      { id: "timeline", title: "Timeline", panel: () => timeline(run, { traceHref, onOpen: open }) },
    ],
    now.view ?? "table",
    (id) => write({ view: id === "table" ? null : id }, { step: true }),
  );

  function open(index) {
    write({ op: index });
    show(index);
  }

  function show(index) {
    if (index == null) side.close();
    else side.open(index);
    picture.made?.select(index);
  }

  function follow(state) {
    views.select(state.view ?? "table");
    ops.show({ ...tableState(state), sort: state.sort ?? usualSort(run) });
    show(state.op == null ? null : Number(state.op));
  }

  const element = el(
    "div",
    { class: "run" },
    setup(run),
    disturbed(run.quietness, "The times of this run are not the model's"),
    figures(totals(run)),
    run.totals.params_note ? el("p", { class: "quiet remark" }, `Parameters: ${run.totals.params_note}.`) : null,
    check(run),
    uncounted(run),
    views.element,
    side.element,
  );
  if (now.op != null) queueMicrotask(() => show(Number(now.op)));
  return { element, follow };
}

const usualSort = (run) => (run.kind === "trace" ? "-p50_ns" : "index");

const tableState = ({ sort = "", q = "", cols = "" }) => ({ sort, q, cols });

/** How the run was made: device, threads, plan and inputs. */
function setup(run) {
  const inputs = Object.entries(run.model.inputs).flatMap(([name, spec], at) => [
    at ? ", " : "",
    el("code", {}, `${name}: ${spec}`),
  ]);
  if (!run.setup)
    return el("p", { class: "quiet" }, "Counted, not measured, for ", inputs, ". 1 MAC = 2 FLOPs; bytes count each tensor once.");
  const { device_name: device, threads, precision, plan_id: plan, runs, warmup, measured_us: at } = run.setup;
  return el(
    "p",
    { class: "quiet" },
    `Measured ${when(at)} on ${device}, ${threads} thread${threads === 1 ? "" : "s"}, ${precision}, `,
    plan && plan !== "default" ? `plan ${plan.slice(0, 12)}` : "without a plan",
    `, ${runs} runs after ${warmup} to warm up, for `,
    inputs,
    ".",
  );
}

/** The result of the self-check: ops faster than their roof, and which number is therefore in doubt. Null where there are none. */
function check(run) {
  if (run.check.ok) return null;
  const { problems } = run.check;
  const box = notice(
    "problem",
    `${problems.length} op${problems.length === 1 ? " is" : "s are"} faster than this device can be: the numbers of this run do not agree`,
  );
  box.id = "check";
  for (const [reason, ops] of Map.groupBy(problems, (problem) => problem.reason)) {
    const worst = Math.max(...ops.map((op) => op.roof_percent));
    const list = ops
      .slice(0, 100)
      .map((op) => el("li", {}, el("code", {}, op.name), ` (${op.op}) at ${percent(op.roof_percent)} of its roof`));
    box.append(
      el(
        "details",
        { open: ops.length < 4 },
        el("summary", {}, `${reason} (${ops.length} op${ops.length === 1 ? "" : "s"}, up to ${percent(worst)} of the roof)`),
        el("ul", {}, list),
      ),
    );
  }
  return box;
}

function uncounted(run) {
  if (!run.uncounted.length) return null;
  return el(
    "details",
    { class: "notice info" },
    el(
      "summary",
      {},
      `${run.uncounted.length} op${run.uncounted.length === 1 ? "" : "s"} not counted; the totals are without them`,
    ),
    el(
      "ul",
      {},
      run.uncounted.slice(0, 100).map((one) => el("li", {}, el("code", {}, one.node), ` (${one.op}): ${one.reason}`)),
    ),
  );
}
