// The work page of one model: run it on an input, count, measure, plan and tune it.

import { list, post } from "../api.js";
import { el, embedded, failure, fill } from "../dom.js";
import * as format from "../format.js";
import { inferForm } from "../infer.js";
import { action, choice, field } from "../parts.js";

const model = embedded("model");
const place = document.getElementById("work");
const [devices, plans] = await Promise.all([known("/v1/devices", {}), known("/v1/plans", { steps: false, model: model.digest })]);
const sizes = openDimensions();

if (model.state === "READY") {
  fill(
    place,
    section("run", "Run one input", null, inferForm(model)),
    el("h2", {}, "Shapes"),
    shapesPart(),
    el(
      "div",
      { class: "works" },
      section(
        "count",
        "Count",
        "What each op costs for these shapes: multiply–accumulates, bytes, memory. Nothing is run.",
        countForm(),
      ),
      section(
        "measure",
        "Measure",
        "Time runs on random inputs, op by op, and store the result.",
        jobForm("trace", "Measure", {
          runs: number("Runs", { min: 1, max: 10_000, value: 50 }),
          threads: number("Threads", { min: 1, max: 1024, hint: "All cores when empty" }),
          plan_id: planField(),
          device: deviceField(),
        }),
      ),
      section(
        "plan",
        "Plan",
        "Choose the strategy of every step from stored measurements and predictions, without measuring.",
        planForm(),
      ),
      section(
        "tune",
        "Tune",
        "Measure candidate strategies within the budget, store the results, and plan with them.",
        jobForm("tune", "Tune", {
          budget_s: number("Budget, s", { min: 0.1, max: 86_400, value: 60, step: "any" }),
          threads: number("Threads", { min: 1, max: 1024, hint: "All cores when empty" }),
          max_error: number("Largest error", { min: 0, max: 1, step: "any", hint: "Relative to the largest output" }),
          backend: backendField(),
          device: deviceField(),
        }),
      ),
    ),
  );
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

/** A list for a select; empty where it cannot be read, so that the defaults can still be chosen. */
async function known(path, params) {
  return model.digest ? list(path, params).catch(() => []) : [];
}

function section(id, title, about, content) {
  return el(
    "section",
    { class: "card", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    about ? el("p", { class: "quiet" }, about) : null,
    content,
  );
}

/** Every dimension that the model leaves open: {label, name (null where it has none), input, at, control}. */
function openDimensions() {
  const found = new Map();
  for (const input of model.inputs) {
    (input.shape ?? []).forEach((dim, at) => {
      if (typeof dim === "number") return;
      const key = dim ?? `${input.name}, dimension ${at}`;
      if (!found.has(key))
        found.set(key, {
          name: dim,
          input,
          at,
          label: key,
          control: el("input", { type: "number", min: "0", value: "1", required: true }),
        });
    });
  }
  return [...found.values()];
}

function shapesPart() {
  const said = model.inputs
    .map((input) => `${input.name}: ${input.dtype}[${(input.shape ?? ["?"]).map((dim) => dim ?? "?").join(", ")}]`)
    .join(", ");
  if (!sizes.length) return el("p", { class: "quiet" }, el("code", {}, said), ": every dimension is fixed.");
  return el(
    "div",
    { class: "form" },
    el("p", { class: "quiet" }, el("code", {}, said)),
    el(
      "div",
      { class: "two" },
      sizes.map(({ label, control }) => field(label, control)),
    ),
  );
}

/** The shapes as the API takes them: sizes of named dimensions, whole shapes of inputs with unnamed ones. */
function bound() {
  const dims = Object.fromEntries(
    sizes.filter(({ name }) => name != null).map(({ name, control }) => [name, control.valueAsNumber]),
  );
  const unnamed = [...new Set(sizes.filter(({ name }) => name == null).map(({ input }) => input))];
  const sizeOf = (input, dim, at) =>
    typeof dim === "number"
      ? dim
      : sizes.find((one) => (dim == null ? one.input === input && one.at === at : one.name === dim)).control.valueAsNumber;
  return {
    dims,
    shapes: Object.fromEntries(unnamed.map((input) => [input.name, input.shape.map((dim, at) => sizeOf(input, dim, at))])),
  };
}

function number(label, { hint, value, ...attrs }) {
  return {
    node: (control) => field(label, control, hint),
    control: el("input", { type: "number", step: "1", required: value != null, ...attrs, value: value ?? "" }),
    read: (control) => (control.value === "" ? null : control.valueAsNumber),
  };
}

function options(label, pairs, selected) {
  return { node: (control) => field(label, control), control: choice(pairs, selected), read: (control) => control.value || null };
}

function deviceField() {
  return options("Device", [["local", "this machine"], ...devices.map((device) => [device.fingerprint, device.name])], "local");
}

function planField() {
  const usable = plans.filter(({ plan }) => plan.state.status === "current");
  const say = ({ id, plan }) => [
    id,
    `${plan.objective}, ${plan.threads} threads, ${format.duration(plan.measured_ns ?? plan.predicted_ns)}, ${id.slice(0, 12)}`,
  ];
  return options("Plan", [["", "every op's default"], ...usable.map(say)], "");
}

function backendField() {
  return options(
    "Kernels",
    [
      ["auto", "native where possible"],
      ["native", "native only"],
      ["numpy", "numpy only"],
    ],
    "auto",
  );
}

/** A form. submit(values, signal): gets the fields that were filled in, returns the address to open. */
function form(title, fields, submit) {
  const [button, reason] = action(title, "admin");
  const stop = el("button", { type: "button", hidden: true }, "Stop waiting");
  const said = el("div", { "aria-live": "polite" });
  async function sent(event) {
    event.preventDefault();
    const control = new AbortController();
    stop.onclick = () => control.abort();
    button.disabled = true;
    stop.hidden = false;
    fill(said, el("p", { class: "quiet" }, "The service is working on it…"));
    try {
      const values = Object.fromEntries(
        Object.entries(fields)
          .map(([name, one]) => [name, one.read(one.control)])
          .filter(([, value]) => value != null),
      );
      location.assign(await submit(values, control.signal));
      fill(said, el("p", { class: "quiet" }, "Done, opening it…"));
    } catch (error) {
      fill(
        said,
        error.name === "AbortError"
          ? el("p", { class: "quiet" }, "No longer waiting; the service will finish the request.")
          : failure("The request failed", error),
      );
    } finally {
      button.disabled = false;
      stop.hidden = true;
    }
  }
  return el(
    "form",
    { class: "form", onsubmit: sent },
    el(
      "div",
      { class: "two" },
      Object.values(fields).map((one) => one.node(one.control)),
    ),
    el("div", { class: "buttons" }, button, stop, reason),
    said,
  );
}

function countForm() {
  return form("Count", {}, async (_, signal) => {
    const run = await post("/v1/profiles", { model: model.name, version: model.version, ...bound() }, signal);
    return `/models/${encodeURIComponent(model.name)}?version=${model.version}&run=${run.id}`;
  });
}

function jobForm(kind, title, fields) {
  return form(title, fields, async ({ device, ...request }, signal) => {
    const job = await post(
      "/v1/jobs",
      { kind, model: model.name, version: model.version, device, request: { ...request, ...bound() } },
      signal,
    );
    return `/jobs/${job.id}`;
  });
}

function planForm() {
  const fields = {
    objective: options(
      "Objective",
      [
        ["latency", "latency"],
        ["throughput", "throughput"],
        ["memory", "memory"],
      ],
      "latency",
    ),
    device: deviceField(),
    max_latency_ms: number("Latency at most, ms", { min: 0.001, step: "any" }),
    max_memory_bytes: number("Memory at most, bytes", { min: 0 }),
    max_error: number("Largest error", { min: 0, max: 1, step: "any", hint: "Relative to the largest output" }),
    max_threads: number("Threads at most", { min: 1, max: 1024 }),
    backend: backendField(),
    precision: options(
      "Precision",
      [
        ["fp32", "fp32"],
        ["auto", "any"],
        ["bf16", "bf16"],
        ["int8", "int8"],
      ],
      "fp32",
    ),
  };
  return form("Plan", fields, async (values, signal) => {
    const plan = await post("/v1/plans", { model: model.name, version: model.version, ...values, ...bound() }, signal);
    return `/plans/${plan.id}`;
  });
}
