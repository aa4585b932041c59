// A model's plans on one device by error and latency. Plans of two devices are never in one picture.

import { get } from "../api.js";
import { colour, scatter } from "../chart.js";
import { el, key, notice } from "../dom.js";
import * as format from "../format.js";
import { choice, field, modelChoice, part, stateWord } from "../parts.js";
import { read, write } from "../state.js";
import { table } from "../table.js";

const KINDS = [
  { name: "on the Pareto front, measured", of: (plan) => plan.efficient && plan.measured, colour: "--series-2" },
  { name: "on the Pareto front, predicted", of: (plan) => plan.efficient && !plan.measured, colour: "--series-3" },
  { name: "another plan is better, or it is stale", of: (plan) => !plan.efficient, colour: "--series-8" },
];
const COLUMNS = [
  { key: "plan_id", title: "Plan", format: (id) => id.slice(0, 12) },
  { key: "efficient", title: "On the Pareto front", format: (value) => (value ? "yes" : "no") },
  { key: "error_estimate", title: "Error estimate", numeric: true, format: exponent },
  { key: "latency_ns", title: "Latency", numeric: true, format: format.duration },
  { key: "measured", title: "Source", format: (value) => (value ? "measured" : "predicted") },
  { key: "memory_bytes", title: "Memory", numeric: true, format: format.bytes },
  { key: "precision", title: "Precision" },
  { key: "objective", title: "Objective" },
  { key: "threads", title: "Threads", numeric: true },
  {
    key: "state",
    title: "State",
    value: (plan) => (plan.stale ? "stale" : plan.drift ? "drifted" : "current"),
    format: stateWord,
  },
];

modelChoice(show);
await show();

/** The kinds of plans in the picture by their colour. */
function legend(points) {
  const present = KINDS.filter((kind) => points.some(kind.of));
  return el(
    "p",
    { class: "legend" },
    present.map(({ colour: of, name }) => key(of, name)),
  );
}

function exponent(value) {
  return value.toExponential(2);
}

function show() {
  return part("pareto", "The plans cannot be read", async () => {
    const { model, sort, q, cols } = read();
    if (!model) return notice("info", "No model is served", el("a", { href: "/upload" }, "Upload one"), ".");
    const { digest } = await get(`/v1/models/${encodeURIComponent(model)}`);
    if (!digest)
      return notice(
        "info",
        "This model is not loaded",
        "Its plans are found by the digest of its file, which is read when it is loaded.",
      );
    const all = await get("/v1/pareto", { model: digest });
    const devices = new Map(all.map((plan) => [plan.device, plan.device_name]));
    const { device = all[0]?.device } = read();
    const points = all.filter((plan) => plan.device === device);
    if (!all.length)
      return notice(
        "info",
        "This model has no plan yet",
        el("a", { href: `/models/${encodeURIComponent(model)}/work#plan` }, "Make one"),
        ", or tune it.",
      );
    const precisions = [...new Set(points.map((point) => point.precision))];
    const chart = scatter({
      label: "Plans by error and latency",
      x: { title: "error estimate, relative to the largest output", format: exponent },
      y: { title: "latency of one inference", format: format.duration },
      lines: [],
      points: points.map((point) => ({
        x: point.error_estimate,
        y: point.latency_ns,
        id: point.plan_id,
        colour: colour(KINDS.find((kind) => kind.of(point)).colour),
        name: `${point.plan_id.slice(0, 12)}: ${format.duration(point.latency_ns)} ${point.measured ? "measured" : "predicted"}, error ${exponent(point.error_estimate)}, ${point.threads} threads${point.efficient ? ", on the Pareto front" : ""}`,
      })),
      onPick: (point) => location.assign(`/plans/${point.id}`),
    });
    const grid = table(COLUMNS, points, {
      label: "Plans",
      noun: "plan",
      sort,
      q,
      cols,
      onState: write,
      id: (row) => row.plan_id,
      href: (row) => `/plans/${row.plan_id}`,
      mark: (row) => (row.efficient ? "chosen" : ""),
    });
    const select = choice([...devices], device, {
      onchange: () => {
        write({ device: select.value });
        show();
      },
    });
    return [
      devices.size > 1
        ? field("Device", select, "Latencies of different devices are not compared.")
        : el("p", {}, `All plans are of ${devices.get(device)}.`),
      legend(points),
      precisions.length === 1
        ? el(
            "p",
            {},
            `Every plan uses ${precisions[0]}: errors differ by algorithm (Winograd, the order of sums), not by precision.`,
          )
        : null,
      chart.element,
      grid.element,
    ];
  });
}
