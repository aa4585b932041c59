// The roofline: the rate that each op reached over its arithmetic intensity, below the peaks of the device.

import { scatter } from "../chart.js";
import { el, key, notice } from "../dom.js";
import { bytes, duration, number, percent, rate } from "../format.js";

/** roofline(run, {onOpen}) → a node. */
export function roofline(run, { onOpen }) {
  if (run.kind !== "trace")
    return notice("info", "Nothing was measured", "A roofline needs times: measure the model, or choose a measured run above.");
  if (!run.roof)
    return notice(
      "info",
      "This device was not measured",
      "Its peaks are unknown, so there is no roof to draw. ",
      el("code", {}, "edgewise device"),
      " measures them.",
    );
  const placed = run.ops.filter((op) => op.intensity > 0 && op.achieved_flops_per_s > 0);
  const bad = new Set(run.check.problems.map((problem) => problem.name));
  const points = placed.map((op) => ({
    op,
    x: op.intensity,
    y: op.achieved_flops_per_s,
    name: op.name,
    ring: Boolean(op.contradiction) || bad.has(op.name),
    colour: op.bound === "memory" ? "--series-2" : "--series-1",
  }));
  const chart = scatter({
    label: "Roofline",
    x: { title: "intensity, FLOPs per byte moved", format: number },
    y: { title: "achieved, FLOP/s", format: (value) => rate(value) },
    points,
    lines: roofs(run.roof, points),
    height: 460,
    describe: ({ op }) =>
      `${op.name} (${op.op}): ${duration(op.p50_ns)}, ${rate(op.achieved_flops_per_s)} at ${number(op.intensity)} FLOPs/B, ${percent(op.roof_percent)} of its roof, ${op.bound || "not"} bound`,
    onPick: ({ op }) => onOpen(op.index),
  });
  return el(
    "div",
    {},
    el(
      "p",
      { class: "legend" },
      key("--series-1", "bound by arithmetic"),
      key("--series-2", "bound by memory"),
      bad.size ? key("--bad", "above its roof", "ring") : null,
    ),
    chart.element,
    el(
      "p",
      { class: "quiet" },
      `${run.roof.threads} thread${run.roof.threads === 1 ? "" : "s"}. `,
      placed.length < run.ops.length
        ? `${run.ops.length - placed.length} of ${run.ops.length} ops do no arithmetic or took no time of their own, and have no point. `
        : "",
      "Drag to zoom, double click to see all.",
    ),
  );
}

/** A sloping line for each level of memory, up to the highest peak; a level line for each peak that matters here. */
function roofs(roof, points) {
  const used = new Set(points.map((point) => point.op.precision));
  const shown = roof.peaks.some((one) => used.has(one.precision))
    ? roof.peaks.filter((one) => used.has(one.precision))
    : roof.peaks;
  const peak = Math.max(...shown.map((one) => one.flops_per_s));
  const xs = points.map((point) => point.x);
  const slowest = Math.min(...roof.bandwidths.map((one) => one.bytes_per_s));
  const fastest = Math.max(...roof.bandwidths.map((one) => one.bytes_per_s));
  const low = Math.min(...xs, peak / fastest) / 2;
  const high = Math.max(...xs, peak / slowest) * 4;
  const slopes = roof.bandwidths.map((one, at) => ({
    name: `${one.level} ${bytes(one.bytes_per_s)}/s`,
    from: [low, low * one.bytes_per_s],
    to: [peak / one.bytes_per_s, peak],
    labelAt: at / (roof.bandwidths.length + 1),
  }));
  const peaks = shown.map((one) => ({
    name: `${one.precision} ${rate(one.flops_per_s)}`,
    from: [one.flops_per_s / fastest, one.flops_per_s],
    to: [high, one.flops_per_s],
  }));
  return [...slopes, ...peaks];
}
