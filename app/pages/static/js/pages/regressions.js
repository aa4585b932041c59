// A model's measured runs over time, and those that became slower.

import { get, list } from "../api.js";
import { lines } from "../chart.js";
import { el, failure, notice } from "../dom.js";
import * as format from "../format.js";
import { field, modelChoice, part, plain, planLink } from "../parts.js";
import { onChange, read, write } from "../state.js";

const THRESHOLD_PERCENT = "5";
const MOST_RUNS = 400;

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
    if (!digest)
      return notice(
        "info",
        "This model is not loaded",
        "Its runs are found by the digest of its file, which is read when it is loaded.",
      );
    const [runs, regressions] = await Promise.allSettled([
      list("/v1/profiles", { model: digest, kind: "trace" }, MOST_RUNS),
      list("/v1/regressions", { model: digest, threshold_percent: threshold }, MOST_RUNS),
    ]);
    return [
      el("h2", {}, "Slower than the run before"),
      thresholdField(),
      ...(regressions.status === "fulfilled"
        ? slower(regressions.value)
        : [failure("The regressions cannot be read", regressions.reason)]),
      el("h2", {}, "History"),
      ...(runs.status === "fulfilled" ? past(runs.value, model) : [failure("The history cannot be read", runs.reason)]),
    ];
  });
}

function thresholdField() {
  const input = el("input", { type: "number", min: "0", max: "1000", step: "any", value: threshold });
  const apply = (event) => {
    event.preventDefault();
    write({ threshold: input.value === THRESHOLD_PERCENT ? null : input.value }, { step: true });
  };
  return el(
    "form",
    { class: "form row", onsubmit: apply },
    field("Slower by more than, %", input, "and by more than the noise of both runs"),
    el("button", { type: "submit" }, "Apply"),
  );
}

function slower(found) {
  if (!found.length)
    return [notice("good", "No run became slower", `None took longer by more than ${threshold} % and the noise of both runs.`)];
  return found.map(({ before, after, growth_percent, noise_percent, ops }) =>
    el(
      "section",
      { class: "card", "aria-label": `Run ${after.id}` },
      el(
        "h3",
        {},
        `${format.duration(before.wall_p50_ns)} → ${format.duration(after.wall_p50_ns)}, `,
        el("span", { class: "worse" }, `+${format.percent(growth_percent)}`),
      ),
      el(
        "p",
        { class: "quiet" },
        `Noise ${format.percent(noise_percent)}. Run ${after.id} of ${format.when(after.created_us)} compared with run ${before.id} of ${format.when(before.created_us)}; ${setup(after)}.`,
        before.engine_build === after.engine_build ? "" : " The engine build changed between them.",
      ),
      plain(
        `Ops that grew most in run ${after.id}`,
        ["Op", "Type", { text: "Before", n: true }, { text: "After", n: true }, "Strategy"],
        ops.map((op) => [
          op.name,
          op.op,
          format.duration(op.before_ns),
          format.duration(op.after_ns),
          op.before_strategy === op.after_strategy ? op.after_strategy : `${op.before_strategy} → ${op.after_strategy}`,
        ]),
      ),
      el("p", {}, el("a", { href: `/compare?runs=${before.id},${after.id}` }, "Compare the two")),
    ),
  );
}

function setup(run) {
  return `${run.device_name ?? run.device}, ${run.threads == null ? "threads unknown" : `${run.threads} thread${run.threads > 1 ? "s" : ""}`}${run.precision ? `, ${run.precision}` : ""}`;
}

/** A chart for each device, thread count and precision: medians as a line, first runs dashed. */
function past(runs, model) {
  if (!runs.length)
    return [
      notice(
        "info",
        "This model was never measured",
        el("a", { href: `/models/${encodeURIComponent(model)}/work#measure` }, "Measure it"),
        ".",
      ),
    ];
  const groups = Map.groupBy(runs.toReversed(), setup);
  return [...groups].map(([title, items]) => {
    const chart = lines({
      label: `Runs over time: ${title}`,
      x: {
        title: "when",
        values: items.map((run) => run.created_us / 1e6),
        time: true,
        format: (seconds) => format.when(seconds == null ? null : 1e6 * seconds),
      },
      y: { title: "latency", format: format.duration, log: true },
      series: [
        { name: "median, warm", values: items.map((run) => run.wall_p50_ns) },
        { name: "first run, cold", values: items.map((run) => run.first_ns), dashed: true },
      ],
    });
    const rows = items
      .toReversed()
      .map((run) => [
        el("a", { href: `/models/${encodeURIComponent(model)}?run=${run.id}` }, `run ${run.id}`),
        format.when(run.created_us),
        format.duration(run.wall_p50_ns),
        format.duration(run.wall_p90_ns),
        format.duration(run.first_ns),
        /^[0-9a-f]{64}$/.test(run.plan_id) ? planLink(run.plan_id) : run.plan_id || "–",
        el("code", {}, run.engine_build.split(".").at(-1)),
      ]);
    return el(
      "section",
      { "aria-label": title },
      el("h3", {}, title),
      items.length > 1 ? chart.element : null,
      plain(
        `Runs: ${title}`,
        [
          "Run",
          "When",
          { text: "Median", n: true },
          { text: "90th percentile", n: true },
          { text: "First, cold", n: true },
          "Plan",
          "Build",
        ],
        rows,
      ),
    );
  });
}
