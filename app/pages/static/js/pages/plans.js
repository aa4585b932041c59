// The stored plans, the newest first.

import { list } from "../api.js";
import { el, notice } from "../dom.js";
import * as format from "../format.js";
import { part, stateWord } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";

const COLUMNS = [
  { key: "made", title: "Made", value: (row) => row.created_us, format: format.when },
  { key: "model", title: "Model", value: (row) => row.plan.model_name },
  { key: "objective", title: "Objective", value: (row) => row.plan.objective },
  { key: "device", title: "Device", value: (row) => row.plan.device_name },
  { key: "threads", title: "Threads", numeric: true, value: (row) => row.plan.threads },
  {
    key: "predicted",
    title: "Predicted",
    numeric: true,
    value: (row) => row.plan.predicted_ns,
    format: format.duration,
    about: "Latency of one inference: the sum of its steps",
  },
  {
    key: "measured",
    title: "Measured",
    numeric: true,
    value: (row) => row.plan.measured_ns,
    format: format.duration,
    about: "Median latency of the whole plan, where tuning measured it",
  },
  { key: "memory", title: "Memory", numeric: true, value: (row) => row.plan.memory_bytes, format: format.bytes },
  {
    key: "error",
    title: "Error estimate",
    numeric: true,
    value: (row) => row.plan.error_estimate,
    format: (value) => value.toExponential(1),
    about: "Declared tolerances of the steps added up, relative to the largest output",
  },
  { key: "served", title: "Served", value: (row) => row.served.join(", "), about: "Models that run this plan now" },
  { key: "state", title: "State", value: (row) => stateWord(row.plan.state.status) },
  { key: "reason", title: "Why", value: (row) => row.plan.state.reason, hidden: true },
  { key: "precision", title: "Precision", value: (row) => row.plan.precision, hidden: true },
  { key: "replicas", title: "Replicas", numeric: true, value: (row) => row.plan.replicas, hidden: true },
  { key: "id", title: "Plan", value: (row) => row.id, format: (id) => id.slice(0, 12), hidden: true },
];

await part("plans", "The plans cannot be read", async () => {
  const plans = await list("/v1/plans", { steps: false, model: read().model, device: read().device });
  if (!plans.length) {
    return notice(
      "info",
      "No plan is stored yet",
      "Make one on the Work page of a model (",
      el("a", { href: "/" }, "Overview"),
      "), or tune it: ",
      el("code", {}, "edgewise tune model.onnx"),
      ".",
    );
  }
  const { sort, q, cols } = read();
  const grid = table(COLUMNS, plans, {
    label: "Plans",
    noun: "plan",
    sort,
    q,
    cols,
    id: (row) => row.id,
    href: (row) => `/plans/${row.id}`,
    onState: write,
    mark: (row) => (["stale", "drifted"].includes(row.plan.state.status) ? "bad" : ""),
  });
  onChange((state) => grid.show(state));
  return grid.element;
});
