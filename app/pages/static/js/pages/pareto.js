// A model's plans by error and latency.

import { get } from "../api.js";
import { colour, scatter } from "../chart.js";
import { el, notice } from "../dom.js";
import * as format from "../format.js";
import { modelChoice, part, stateWord } from "../parts.js";
import { read, write } from "../state.js";
import { table } from "../table.js";

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
  { key: "device_name", title: "Device" },
  {
    key: "state",
    title: "State",
    value: (plan) => (plan.stale ? "stale" : plan.drift ? "drifted" : "current"),
    format: stateWord,
  },
];

modelChoice(show);
await show();

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
    const points = await get("/v1/pareto", { model: digest });
    if (!points.length)
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
        colour: colour(point.efficient ? "--series-2" : "--series-8"),
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
    return [
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
