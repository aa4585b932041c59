// Activation memory over the run: how much is held at each step, and what, at the step under the cursor.

import { lines } from "../chart.js";
import { el, fill } from "../dom.js";
import { bytes, count, percent } from "../format.js";
import { table } from "../table.js";

/** memory(run, {at, onState, onOpen}) → a node. at: the step looked at, the peak where it is null. */
export function memory(run, { at, onState, onOpen }) {
  const peak = run.ops.reduce((best, op, index) => (op.live_bytes > run.ops[best].live_bytes ? index : best), 0);
  const title = el("h2", {});
  const slider = el("input", {
    type: "range",
    min: "0",
    max: String(run.ops.length - 1),
    "aria-label": "Step",
    oninput: () => look(Number(slider.value)),
    onchange: () => onState({ at: slider.value }),
  });
  const alive = table(
    [
      { key: "name", title: "Tensor" },
      {
        key: "nbytes",
        title: "Size",
        numeric: true,
        format: bytes,
        part: (value) => value.nbytes / Math.max(1, run.ops[shown].live_bytes),
      },
      {
        key: "share",
        title: "Share of memory held",
        numeric: true,
        format: percent,
        value: (value) => (100 * value.nbytes) / Math.max(1, run.ops[shown].live_bytes),
      },
      { key: "first", title: "From step", numeric: true, format: count },
      { key: "last", title: "To step", numeric: true, format: count },
      {
        key: "offset_bytes",
        title: "At",
        unit: "bytes into the arena",
        numeric: true,
        format: (value) => (value == null ? "outside" : count(value)),
      },
    ],
    [],
    { label: "Tensors alive", noun: "tensor", sort: "-nbytes", toolbar: false, empty: "No tensor is held at this step." },
  );
  let shown = -1;

  const chart = lines({
    label: "Memory held by activations, per step",
    x: { title: "step, in the order of execution", values: run.ops.map((_, index) => index), format: count, whole: true },
    y: { title: "activations held, bytes", format: bytes },
    series: [{ name: "held", values: run.ops.map((op) => op.live_bytes), area: true, stepped: true }],
    marks: [{ at: peak, text: `peak ${bytes(run.totals.peak_activation_bytes)}` }],
    onCursor: (index) => index != null && look(index),
    height: 280,
  });

  function look(index) {
    if (index === shown) return;
    shown = index;
    const op = run.ops[index];
    const held = run.values.filter((value) => value.first <= index && index <= value.last);
    slider.value = String(index);
    slider.setAttribute("aria-valuetext", `Step ${index}, ${op.name}`);
    fill(
      title,
      `Step ${index}: `,
      el("button", { type: "button", class: "link", onclick: () => onOpen(op.index) }, op.name),
      ` holds ${bytes(op.live_bytes)} in ${held.length} tensor${held.length === 1 ? "" : "s"}`,
    );
    alive.update(held);
  }

  look(Math.min(run.ops.length - 1, Math.max(0, at ?? peak)));
  chart.element.addEventListener("click", () => onState({ at: String(shown) }));
  return el(
    "div",
    {},
    chart.element,
    el(
      "div",
      { class: "toolbar" },
      slider,
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            look(peak);
            onState({ at: null });
          },
        },
        "Peak",
      ),
    ),
    title,
    alive.element,
  );
}
