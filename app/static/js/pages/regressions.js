// A model's measured runs over time, and those that became slower.

import { get } from "../api.js";
import { lines } from "../chart.js";
import { el, failure, notice } from "../dom.js";
import * as format from "../format.js";
import { field, modelChoice, part, plain } from "../parts.js";
import { onChange, read, write } from "../state.js";

const THRESHOLD_PERCENT = "5";

modelChoice(show);
let threshold = read().threshold ?? THRESHOLD_PERCENT;
onChange((state) => {
  if ((state.threshold ?? THRESHOLD_PERCENT) === threshold) return;
  threshold = state.threshold ?? THRESHOLD_PERCENT;
  show();
});
await show();

function show() {
  return part("regressions", "The runs cannot be read", async () => {
    const { model } = read();
    if (!model) return notice("info", "No model is served", el("a", { href: "/upload" }, "Upload one"), ".");
    const { digest } = await get(`/v1/models/${encodeURIComponent(model)}`);
    if (!digest) return notice("info", "This model is not loaded", "Its runs are found by what is in its file.");
    const [history, regressions] = await Promise.allSettled([
      get("/v1/history", { model: digest }), get("/v1/regressions", { model: digest, threshold_percent: threshold, limit: 100 }),
    ]);
    return [
      el("h2", {}, "Slower than the run before"), thresholdField(),
      ...(regressions.status === "fulfilled" ? slower(regressions.value.items, model) : [failure("The regressions cannot be read", regressions.reason)]),
      el("h2", {}, "History"),
      ...(history.status === "fulfilled" ? past(history.value, model) : [failure("The history cannot be read", history.reason)]),
    ];
  });
}

function thresholdField() {
  const input = el("input", { type: "number", min: "0", max: "1000", step: "any", value: threshold });
  const apply = (event) => {
    event.preventDefault();
    write({ threshold: input.value === THRESHOLD_PERCENT ? null : input.value }, { step: true });
  };
  return el("form", { class: "form row", onsubmit: apply }, field("Slower by more than, %", input, "and by more than the noise of both runs"), el("button", { type: "submit" }, "Apply"));
}
