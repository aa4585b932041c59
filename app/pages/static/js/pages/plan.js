// One plan: its cost, every step with its candidates, estimates of other choices, and its difference from another plan.

import { get, list, post } from "../api.js";
import { clear, el, failure, figures, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { choice, deviceLink, facts, field, part, plain, planLink, stateBadge } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";
import { tabs } from "../tabs.js";

const VERDICTS = {
  chosen: "chosen",
  tie: "as fast",
  slower: "slower",
  unmeasured: "not measured",
  over_limit: "over a limit",
  refused: "not possible",
};
const REASONS = { compute: "arithmetic", memory: "memory", dispatch: "dispatch", unknown: "" };
const FREE = "executor"; // the backend of steps without a kernel

await part("plan", "The plan cannot be read", async (place) => {
  const id = place.dataset.plan;
  const [{ plan, created_us }, rows, served] = await Promise.all([
    get(`/v1/plans/${id}`),
    get(`/v1/plans/${id}/explain`),
    get("/v1/plans/served"),
  ]);
  const steps = rows.map((row) => ({ ...plan.steps[row.index], ...row }));
  document.title = `Plan of ${plan.model_name} · Edgewise`;
  fill(document.getElementById("title"), `Plan of ${plan.model_name} `, el("small", {}, el("code", {}, id.slice(0, 12))));
  const views = [
    { id: "steps", title: "Steps", panel: () => stepsPanel(steps) },
    { id: "threads", title: "Threads", panel: () => threadsPanel(plan) },
    { id: "what-if", title: "What if", panel: () => whatIfPanel(id, steps) },
    { id: "diff", title: "Difference", panel: () => diffPanel(id, plan) },
  ];
  const shown = tabs("Views of the plan", views, read().view ?? "steps", (view) =>
    write({ view: view === "steps" ? null : view }),
  );
  onChange((state) => shown.select(state.view ?? "steps"));
  return [...header(id, plan, created_us), drift(served.find((item) => item.plan_id === id)), shown.element];
});

function header(id, plan, created_us) {
  const { state, constraints } = plan;
  const stale = state.reason
    ? notice(state.status === "predicted" ? "info" : "problem", `This plan is ${state.status}`, state.reason)
    : null;
  const limits = [
    ["latency", constraints.max_latency_ms, (value) => `${value} ms`],
    ["memory", constraints.max_memory_bytes, format.bytes],
    ["error", constraints.max_error, String],
    ["threads", constraints.max_threads, String],
  ]
    .filter(([, value]) => value != null)
    .map(([name, value, say]) => `${name} at most ${say(value)}`);
  return [
    el("p", {}, stateBadge(state.status), " ", plan.why),
    stale,
    figures([
      ["Predicted, one inference", `${format.duration(plan.predicted_ns)}`],
      ["Between", `${format.duration(plan.low_ns)} – ${format.duration(plan.high_ns)}`],
      ["Measured, whole plan", format.duration(plan.measured_ns)],
      ["Threads", plan.replicas > 1 ? `${plan.threads} × ${plan.replicas} replicas` : String(plan.threads)],
      ["Memory", format.bytes(plan.memory_bytes)],
      ["Error estimate", plan.error_estimate.toExponential(1)],
    ]),
    facts([
      ["Objective", plan.objective],
      ["Limits", limits.join(", ") || "none"],
      ["Backend", constraints.backend],
      ["Precision", plan.precision],
      ["Inputs", plan.inputs.map((input) => `${input.name}: ${input.dtype}[${input.shape.join(",")}]`).join(", ")],
      ["Device", deviceLink(plan.device_fingerprint, plan.device_name)],
      ["Engine build", el("code", {}, plan.engine_build)],
      ["Arena", format.bytes(plan.arena_bytes)],
      ["Parameters", format.bytes(plan.param_bytes)],
      ["Made", format.when(created_us)],
      ["Plan", el("code", {}, id)],
    ]),
  ];
}

function drift(served) {
  if (!served) return null;
  const last = served.windows.at(-1);
  const text = `${format.count(served.count)} inferences; the last window's median is ${format.duration(last?.p50_ns)}, ${format.ratio(served.ratio)} of the expected ${format.duration(served.expected_ns)} (${served.measured ? "measured" : "predicted"}).`;
  return notice(
    served.drifted ? "problem" : "good",
    served.drifted ? "Served runs of this plan take another time than it expects" : "This plan is being served",
    text,
  );
}

function stepsPanel(steps) {
  const chosen = (row) => row.candidates.find((candidate) => candidate.verdict === "chosen");
  const most = Math.max(...steps.map((row) => row.expected_ns));
  const detail = el("section", { class: "detail", "aria-label": "Candidates of the step", tabindex: "-1", hidden: true });
  const columns = [
    { key: "node", title: "Node" },
    { key: "op", title: "Op" },
    { key: "strategy", title: "Strategy", format: (text) => (text.startsWith(FREE) ? "no kernel" : text) },
    {
      key: "expected_ns",
      title: "Expected",
      numeric: true,
      format: format.duration,
      part: (row) => row.expected_ns / most,
      about: "The time that the planner uses: measured where there is a measurement, else predicted",
    },
    { key: "predicted", title: "Predicted", numeric: true, format: format.duration, value: (row) => chosen(row)?.predicted_ns },
    { key: "measured_ns", title: "Measured", numeric: true, format: format.duration, value: (row) => chosen(row)?.measured_ns },
    { key: "share_percent", title: "Share", numeric: true, format: format.percent },
    { key: "bound_by", title: "Bound by", format: (value) => REASONS[value] ?? value },
    { key: "candidates", title: "Candidates", numeric: true, value: (row) => row.candidates.length },
    {
      key: "between",
      title: "Between",
      format: (_, row) => `${format.duration(row.low_ns)} – ${format.duration(row.high_ns)}`,
      hidden: true,
    },
    { key: "macs", title: "MACs", numeric: true, format: format.macs, hidden: true },
    { key: "executed_macs", title: "MACs executed", numeric: true, format: format.macs, hidden: true },
    { key: "moved_bytes", title: "Moved", numeric: true, format: format.bytes, hidden: true },
    { key: "level", title: "From", hidden: true },
    { key: "why", title: "Why", hidden: true },
  ];
  const { sort, q, cols } = read();
  const grid = table(columns, steps, {
    label: "Steps of the plan",
    noun: "step",
    sort,
    q,
    cols,
    onState: write,
    id: (row) => row.index,
    onOpen: (row) => write({ step: row.index }, { step: true }),
    href: (row) => `?step=${row.index}`,
    mark: (row) => (String(row.index) === read().step ? "chosen" : ""),
  });
  let open = null;
  function show(state) {
    grid.show(state);
    if (state.step === open) return;
    open = state.step;
    const row = steps[Number(open ?? -1)];
    detail.hidden = !row;
    grid.update(steps);
    if (row)
      fill(
        detail,
        stepDetail(row, () => {
          write({ step: null });
          grid.reveal(row.index);
        }),
      );
    if (row) detail.focus({ preventScroll: false });
  }
  onChange(show);
  queueMicrotask(() => show(read()));
  return el("div", { class: "beside" }, grid.element, detail);
}

function stepDetail(row, close) {
  const candidates = row.candidates.map((candidate) => [
    el("code", {}, candidate.strategy),
    VERDICTS[candidate.verdict],
    format.duration(candidate.measured_ns),
    format.duration(candidate.predicted_ns),
    candidate.predicted_ns == null ? "–" : `${format.duration(candidate.low_ns)} – ${format.duration(candidate.high_ns)}`,
    format.bytes(candidate.workspace_bytes),
    format.bytes(candidate.packed_bytes),
    candidate.reason || "–",
  ]);
  return [
    el("div", { class: "detail-head" }, el("h2", {}, row.node), el("button", { type: "button", onclick: close }, "Close")),
    el("p", {}, row.why),
    facts([
      ["Op", row.op],
      ["Strategy", el("code", {}, row.strategy)],
      ["Expected", `${format.duration(row.expected_ns)} (${row.measured ? "measured" : "predicted"})`],
      ["Between", `${format.duration(row.low_ns)} – ${format.duration(row.high_ns)}`],
      ["Share", format.percent(row.share_percent)],
      ["MACs", format.count(row.macs)],
      ["MACs executed", format.count(row.executed_macs)],
      ["Bytes moved", `${format.count(row.moved_bytes)} from ${row.level}`],
      ["Signature", el("code", {}, row.signature)],
    ]),
    candidates.length
      ? plain(
          "Candidates",
          [
            "Candidate",
            "Verdict",
            { text: "Measured", n: true },
            { text: "Predicted", n: true },
            { text: "Between", n: true },
            { text: "Workspace", n: true },
            { text: "Packed", n: true },
            "Why",
          ],
          candidates,
        )
      : notice(
          "info",
          "No candidates",
          "This step has no kernel: it is a view or control flow, or its shapes are known only when it runs.",
        ),
  ];
}

function threadsPanel(plan) {
  const rows = plan.thread_options.map((option) => [
    String(option.threads),
    String(option.replicas),
    format.duration(option.predicted_ns),
    `${option.throughput_per_s.toFixed(1)} /s`,
    format.bytes(option.memory_bytes),
    VERDICTS[option.verdict],
    option.reason || "–",
  ]);
  const ties = plan.ties.length
    ? [
        el("h3", {}, "Ties"),
        el(
          "ul",
          {},
          plan.ties.map((tie) => el("li", {}, tie)),
        ),
      ]
    : null;
  return el(
    "div",
    {},
    plain(
      "Thread counts that were considered",
      [
        { text: "Threads", n: true },
        { text: "Replicas", n: true },
        { text: "Expected", n: true },
        { text: "Throughput", n: true },
        { text: "Memory", n: true },
        "Verdict",
        "Why",
      ],
      rows,
    ),
    ties,
  );
}

/** The short names of the strategies that steps have: backends, and algorithms without their parameters. */
function wordings(steps) {
  const texts = new Set();
  for (const { strategy } of steps.flatMap((step) => step.candidates)) {
    const [backend, algorithm] = strategy.split("/");
    texts.add(backend).add(`${backend}/${algorithm.split("{")[0]}`);
  }
  return [...texts].sort();
}

function whatIfPanel(id, steps) {
  const able = steps.filter((step) => step.candidates.length);
  const node = choice([["", "every step"], ...able.map((step) => [step.node, `${step.node} (${step.op})`])], read().node ?? "", {
    onchange: offer,
  });
  const wanted = el("select", {});
  const result = el("div", { "aria-live": "polite" });
  const form = el(
    "form",
    { class: "form row", onsubmit: ask },
    field("Step", node),
    field("Strategy", wanted),
    el("button", { type: "submit", class: "primary" }, "Estimate the cost"),
  );

  function offer() {
    const step = able.find((other) => other.node === node.value);
    const texts = step ? [...wordings([step]), ...step.candidates.map((candidate) => candidate.strategy)] : wordings(able);
    fill(
      wanted,
      texts.map((text) => el("option", { value: text }, text)),
    );
  }

  async function ask(event) {
    event.preventDefault();
    const asked = node.value ? { nodes: { [node.value]: wanted.value } } : { everywhere: wanted.value };
    fill(result, el("p", { class: "skeleton" }, "Estimating…"));
    try {
      fill(result, whatIfResult(await post("/v1/plans/what-if", { plan_id: id, ...asked }), steps.length));
    } catch (error) {
      fill(result, failure("The cost cannot be estimated", error));
    }
  }

  offer();
  return el(
    "div",
    {},
    el(
      "p",
      { class: "quiet" },
      "Layouts, fusions and threads stay as in the plan. Times are measured where there is a measurement, else predicted.",
    ),
    form,
    result,
  );
}

function whatIfResult(found, count) {
  const rows = found.steps.map((step) => [
    step.node,
    step.op,
    el("code", {}, step.before),
    el("code", {}, step.after),
    format.duration(step.before_ns),
    `${format.duration(step.after_ns)}`,
    step.measured ? "measured" : `predicted, ${format.duration(step.low_ns)} – ${format.duration(step.high_ns)}`,
  ]);
  return [
    figures([
      ["Before", format.duration(found.before_ns)],
      ["After", format.duration(found.after_ns)],
      ["After ÷ before", format.ratio(found.ratio)],
      ["Steps that change", String(found.steps.length)],
      ["Measured, of all steps", `${found.after_measured} of ${count}`],
    ]),
    rows.length
      ? plain(
          "Steps that change",
          ["Node", "Op", "Before", "After", { text: "Before", n: true }, { text: "After", n: true }, "Source"],
          rows,
        )
      : notice("info", "Nothing changes", "Every step that can run this way already does."),
    found.refused.length ? [el("h3", {}, "Steps that cannot"), plain("Steps that cannot", ["Node", "Why"], found.refused)] : null,
  ].flat();
}

function diffPanel(id, plan) {
  const element = el("div", {}, el("p", { class: "skeleton" }, "Reading other plans…"));
  const result = el("div", { "aria-live": "polite" });
  async function show(other) {
    if (!other) return clear(result);
    try {
      return fill(result, diffResult(await get(`/v1/plans/${id}/diff/${other}`), other));
    } catch (error) {
      return fill(result, failure("The plans cannot be compared", error));
    }
  }
  (async () => {
    try {
      const others = (await list("/v1/plans", { steps: false, model: plan.model_digest }, 200)).filter(
        (stored) => stored.id !== id,
      );
      if (!others.length)
        return fill(
          element,
          notice(
            "info",
            "This model has no other plan",
            "Make one for another objective, device or limit, to see here how they differ.",
          ),
        );
      const say = ({ id: key, created_us, plan: other }) => [
        key,
        `${format.when(created_us)} · ${other.objective} · ${other.device_name} · ${other.threads} threads · ${format.duration(other.predicted_ns)} · ${key.slice(0, 12)}`,
      ];
      const select = choice([["", "choose a plan"], ...others.map(say)], read().other ?? "", {
        onchange: () => {
          write({ other: select.value });
          show(select.value);
        },
      });
      fill(element, el("form", { class: "form row" }, field("To the plan", select)), result);
      return await show(select.value);
    } catch (error) {
      return fill(element, failure("The other plans cannot be read", error));
    }
  })();
  return element;
}

function diffResult(found, other) {
  const steps = found.steps.map((step) => [
    step.node,
    step.op,
    step.before ? el("code", {}, step.before) : "not in this plan",
    step.after ? el("code", {}, step.after) : "not in the other",
    format.duration(step.before_ns),
    format.duration(step.after_ns),
  ]);
  return [
    figures([
      ["This plan", format.duration(found.before_ns)],
      ["The other", format.duration(found.after_ns)],
      ["Other ÷ this", format.ratio(found.ratio)],
    ]),
    el("p", {}, planLink(other, "Open the other plan")),
    el("h3", {}, "Request"),
    found.changes.length
      ? plain(
          "Differences",
          ["What", "This plan", "The other"],
          found.changes.map((change) => [change.what.replaceAll("_", " "), change.before, change.after]),
        )
      : el("p", {}, "No difference."),
    el("h3", {}, `Steps that differ: ${steps.length}`),
    steps.length
      ? plain(
          "Steps that differ",
          ["Node", "Op", "This plan", "The other", { text: "This", n: true }, { text: "Other", n: true }],
          steps,
        )
      : el("p", {}, "None: both run every step by the same algorithm."),
  ];
}
