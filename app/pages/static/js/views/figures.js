// The figures of an op, in one place: the table's columns, the panel of one op, and the amounts that views colour and sum by.

import { el, fill } from "../dom.js";
import * as format from "../format.js";

const { bytes, count, duration, flops, macs, number, percent, rate } = format;

/** Every figure of an op: {key, title, unit, format, numeric, about, of: "trace" | undefined, hidden}. */
const FIGURES = [
  { key: "name", title: "Op", about: "Name of the node, or of the first node of a fused step" },
  { key: "op", title: "Type" },
  { key: "index", title: "Step", numeric: true, format: count, about: "Place in the order of execution" },
  {
    key: "p50_ns",
    title: "Time, p50",
    numeric: true,
    format: duration,
    of: "trace",
    bar: "p50_ns",
    about: "Median of the measured runs",
  },
  {
    key: "share_percent",
    title: "Share",
    numeric: true,
    format: percent,
    about: "Share of the time, or of the FLOPs where nothing was measured",
  },
  { key: "strategy", title: "Strategy", of: "trace", about: "Backend and algorithm that the op ran with" },
  {
    key: "roof_percent",
    title: "Of roof",
    numeric: true,
    format: percent,
    of: "trace",
    about: "Least time on this device ÷ time taken",
  },
  { key: "bound", title: "Bound by", of: "trace", about: "What limits its least time: arithmetic or memory traffic" },
  {
    key: "wasted_ns",
    title: "Wasted",
    numeric: true,
    format: duration,
    of: "trace",
    bar: "wasted_ns",
    about: "Time beyond the least that the device allows",
  },
  { key: "macs", title: "MACs", numeric: true, format: count, about: "Multiply–accumulates, 1 MAC = 2 FLOPs" },
  {
    key: "flops",
    title: "FLOPs",
    numeric: true,
    format: count,
    bar: "flops",
    about: "Floating-point operations of the op as the model defines it",
  },
  { key: "moved_bytes", title: "Moved", numeric: true, format: bytes, about: "Bytes read and written as executed" },
  { key: "output", title: "Output", about: "Type and shape of the first output" },
  { key: "backend", title: "Backend", of: "trace", hidden: true },
  { key: "precision", title: "Precision", of: "trace", hidden: true },
  {
    key: "level",
    title: "Memory level",
    of: "trace",
    hidden: true,
    about: "Memory level that its bytes are assumed to come from",
  },
  { key: "achieved_flops_per_s", title: "Achieved", numeric: true, format: (value) => rate(value), of: "trace", hidden: true },
  { key: "intensity", title: "Intensity", unit: "FLOPs/B", numeric: true, format: number, hidden: true },
  { key: "p90_ns", title: "Time, p90", numeric: true, format: duration, of: "trace", hidden: true },
  { key: "min_ns", title: "Time, least", numeric: true, format: duration, of: "trace", hidden: true },
  { key: "first_ns", title: "Time, first run", numeric: true, format: duration, of: "trace", hidden: true },
  { key: "predicted_ns", title: "Predicted", numeric: true, format: duration, of: "trace", hidden: true },
  { key: "roof_ns", title: "Least time", numeric: true, format: duration, of: "trace", hidden: true },
  { key: "executed_macs", title: "MACs executed", numeric: true, format: count, hidden: true },
  { key: "read_bytes", title: "Read", numeric: true, format: bytes, hidden: true },
  { key: "write_bytes", title: "Written", numeric: true, format: bytes, hidden: true },
  { key: "param_bytes", title: "Weights", numeric: true, format: bytes, hidden: true },
  {
    key: "live_bytes",
    title: "Memory held",
    numeric: true,
    format: bytes,
    hidden: true,
    about: "Activations alive while it runs",
  },
];

/** The figures that a run has, as columns of table.js. */
export function columns(run) {
  return FIGURES.filter((figure) => !figure.of || figure.of === run.kind).map((figure) => {
    if (!figure.bar) return figure;
    const most = Math.max(...run.ops.map((op) => op[figure.bar] ?? 0));
    return { ...figure, part: (op) => (most > 0 ? (op[figure.bar] ?? 0) / most : 0) };
  });
}

/** The totals of a run that head its page. */
export function totals(run) {
  const all = run.totals;
  const measured =
    run.kind === "trace"
      ? [
          ["Time, p50", duration(all.wall_p50_ns)],
          ["Time, p90", duration(all.wall_p90_ns)],
          ["First run", duration(all.first_ns)],
          ["Least possible", duration(all.roof_ns)],
          ["Wasted", duration(all.wasted_ns)],
          ["Between ops", duration(all.unattributed_ns)],
        ]
      : [];
  return [
    ...measured,
    ["Multiply–accumulates", macs(all.macs)],
    ["Arithmetic", flops(all.flops)],
    ["Parameters", count(all.params)],
    ["Peak activations", bytes(all.peak_activation_bytes)],
    ["Counted", `${all.coverage_percent.toFixed(0)} % of ops`],
  ];
}

/** Amounts that views colour and sum ops by; the first is the usual one. */
export function amounts(run) {
  const time = { key: "p50_ns", title: "Time", unit: "p50", format: duration };
  const waste = { key: "wasted_ns", title: "Wasted time", unit: "beyond the roof", format: duration };
  const rest = [
    { key: "flops", title: "Arithmetic", unit: "FLOPs", format: flops },
    { key: "moved_bytes", title: "Bytes moved", unit: "read and written", format: bytes },
    { key: "live_bytes", title: "Memory held", unit: "while the op runs", format: bytes },
  ];
  return run.kind === "trace" ? [time, waste, ...rest] : rest;
}

/** A choice of one of the amounts. */
export function chooser(label, choices, chosen, onChoose) {
  const select = el(
    "select",
    { onchange: () => onChoose(choices.find((one) => one.key === select.value)) },
    choices.map((one) => el("option", { value: one.key, selected: one.key === chosen.key }, one.title)),
  );
  return el("label", {}, label, select);
}

/**
 * The panel of one op: all its figures, in a dialog beside the page. panel(run, {onClose, onShow}) → {element, open(index), close()};
 * onShow(index) goes to another op.
 */
export function panel(run, { onClose, onShow }) {
  const content = el("div", {});
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: onClose }, "×");
  const element = el(
    "aside",
    {
      class: "op-panel",
      "aria-label": "Op",
      hidden: true,
      tabindex: "-1",
      onkeydown: (event) => event.key === "Escape" && onClose(),
    },
    close,
    content,
  );
  const makers = new Map(run.ops.flatMap((op) => op.outputs.map((value) => [value, op])));
  const takers = Map.groupBy(
    run.ops.flatMap((op) => op.inputs.map((value) => [value, op])),
    ([value]) => value,
  );
  let from = null;

  const link = (op) => el("button", { type: "button", class: "link", onclick: () => onShow(op.index) }, op.name);
  const values = (title, names, ops) =>
    names.length > 0 && [
      el("h3", {}, title),
      el(
        "ul",
        { class: "values" },
        names.map((value) =>
          el(
            "li",
            {},
            el("code", {}, value),
            ops(value).flatMap((op) => [" ", link(op)]),
          ),
        ),
      ),
    ];

  function open(index) {
    const op = run.ops.find((one) => one.index === index);
    if (!op) return;
    if (element.hidden) from = document.activeElement;
    const rows = columns(run).filter((figure) => figure.key !== "name" && op[figure.key] != null && op[figure.key] !== "");
    fill(
      content,
      el("h2", {}, op.name),
      op.contradiction !== "" && el("p", { class: "problem" }, op.contradiction),
      !op.counted && el("p", { class: "problem" }, `Not counted: ${op.reason}`),
      op.counted && op.reason !== "" && el("p", { class: "quiet" }, op.reason),
      el(
        "dl",
        { class: "facts" },
        rows
          .map((figure) => [
            el("dt", {}, figure.unit ? `${figure.title}, ${figure.unit}` : figure.title),
            el("dd", {}, figure.format ? figure.format(op[figure.key], op) : String(op[figure.key])),
          ])
          .flat(),
      ),
      values("Inputs", op.inputs, (value) => [makers.get(value)].filter(Boolean)),
      values("Outputs", op.outputs, (value) => (takers.get(value) ?? []).map(([, taker]) => taker)),
      op.origins.length > 1 || (op.origins.length && op.origins[0] !== op.name)
        ? [
            el("h3", {}, "Computes the nodes"),
            el(
              "ul",
              { class: "values" },
              op.origins.map((origin) => el("li", {}, el("code", {}, origin))),
            ),
          ]
        : null,
    );
    element.hidden = false;
    element.scrollTop = 0;
    element.focus();
  }

  return {
    element,
    open,
    close() {
      if (element.hidden) return;
      element.hidden = true;
      if (from?.isConnected) from.focus();
    },
  };
}
