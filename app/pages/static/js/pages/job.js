// One job, followed by server-sent events while it waits and runs.

import { events, get, post } from "../api.js";
import { lines } from "../chart.js";
import { el, failure, figures, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { action, deviceLink, deviceNames, facts, modelLink, modelsByDigest, part, progressText, stateBadge } from "../parts.js";

const TITLES = { tune: "Tune", trace: "Measure", profile: "Count", probe: "Measure the device" };
const OPEN = ["queued", "running"];

await part("job", "The job cannot be read", async (place) => {
  const number = Number(place.dataset.number);
  const [first, models, devices] = await Promise.all([get(`/v1/jobs/${number}`), modelsByDigest(), deviceNames()]);
  const model = models.get(first.model_digest);
  const title = `${TITLES[first.kind] ?? first.kind}${model ? ` ${model.name}` : ""}`;
  document.title = `${title}, job ${number} · Edgewise`;
  fill(document.getElementById("title"), `${title} `, el("small", {}, `job ${number}`));

  const head = el("div", { role: "status" });
  const bar = el("div", {});
  const outcome = el("div", {});
  const about = el("div", {});
  const course = first.kind === "tune" ? bestOverTime() : null;
  const said = el("div", { "aria-live": "polite" });
  const [button, reason] = action("Cancel this job", "admin", { type: "button", class: null, onclick: cancel });
  const buttons = el("div", { class: "form" }, el("div", { class: "buttons" }, button, reason));

  async function cancel() {
    button.disabled = true;
    try {
      show(await post(`/v1/jobs/${number}/cancel`, {}));
    } catch (error) {
      fill(said, failure("The job cannot be cancelled", error));
      button.disabled = false;
    }
  }

  function show(job) {
    const open = OPEN.includes(job.state);
    fill(head, el("p", {}, stateBadge(job.state), " ", sentence(job)));
    fill(bar, open ? progressBar(job.progress) : null, tuneFigures(job.progress));
    course?.add(job.progress);
    buttons.hidden = !open;
    button.disabled ||= job.cancel_asked;
    fill(outcome, open ? null : results(job, model));
    fill(about, el("h2", {}, "Request"), asked(job, model, devices));
  }

  show(first);
  if (OPEN.includes(first.state)) {
    events(`/v1/jobs/${number}/events`, (name, job) => {
      if (name === "lost") fill(said, failure("This page no longer receives updates of the job", job));
      else show(job);
    });
  }
  return [head, bar, buttons, said, outcome, course?.element, about];
});

function sentence(job) {
  if (job.state === "queued") return "Waiting for a worker on its device.";
  if (job.state === "running")
    return job.cancel_asked
      ? "It was asked to stop and will do so as soon as it can."
      : `${job.owner} has been working on it since ${format.when(job.started_us)}.`;
  return job.started_us == null
    ? `It did not run; it ended at ${format.when(job.finished_us)}.`
    : `It ran from ${format.when(job.started_us)} to ${format.when(job.finished_us)}, ${format.duration(1e3 * (job.finished_us - job.started_us))}.`;
}

function progressBar(progress) {
  const text = progressText({ progress, state: "running", result: {} }) || "No progress was reported yet.";
  const [value, max] = progress.budget_s == null ? [progress.done, progress.total] : [progress.spent_s, progress.budget_s];
  const attrs = value == null ? {} : { value: String(value), max: String(max) };
  return el(
    "div",
    { class: "result" },
    el("progress", { ...attrs, "aria-label": "Progress of the job" }),
    el("p", { class: "quiet" }, text),
  );
}

function tuneFigures(progress) {
  if (progress.budget_s == null) return null;
  return figures([
    ["Best so far", progress.best_ns ? format.duration(progress.best_ns) : "–"],
    ["Candidates measured", `${format.count(progress.measured)} of ${format.count(progress.planned)}`],
    ["Spent", `${progress.spent_s.toFixed(0)} of ${progress.budget_s} s`],
    ["Now", progress.now],
  ]);
}

/** The best latency over the time spent, from events received while the page is open. */
function bestOverTime() {
  const points = [];
  const chart = lines({
    label: "Best latency so far against time spent",
    x: { title: "time spent, s", values: [], format: (value) => value?.toFixed(0) ?? "–" },
    y: { title: "best latency so far", format: format.duration },
    series: [{ name: "best so far", values: [], stepped: true }],
  });
  const element = el("section", { hidden: true }, el("h2", {}, "Best so far, since this page was opened"), chart.element);
  return {
    element,
    add(progress) {
      const last = points.at(-1);
      if (!progress.best_ns || (last && last[0] >= progress.spent_s)) return;
      points.push([progress.spent_s, progress.best_ns]);
      if (points.length < 2) return;
      element.hidden = false;
      chart.update({
        x: { title: "time spent, s", values: points.map(([spent]) => spent), format: (value) => value?.toFixed(0) ?? "–" },
        series: [{ name: "best so far", values: points.map(([, best]) => best), stepped: true }],
      });
    },
  };
}

function results(job, model) {
  const { result } = job;
  if (job.state === "failed") return notice("problem", "The job failed", job.error);
  const run =
    result.profile_id == null
      ? null
      : model
        ? el(
            "a",
            { class: "button", href: `/models/${encodeURIComponent(model.name)}?run=${result.profile_id}` },
            `Open run ${result.profile_id}`,
          )
        : el("a", { class: "button", href: `/compare?runs=${result.profile_id}` }, `Open run ${result.profile_id}`);
  const plan = result.plan_id ? el("a", { class: "button", href: `/plans/${result.plan_id}` }, "Open the plan") : null;
  const device = result.device ? el("a", { class: "button", href: `/devices/${result.device}` }, "Open the device") : null;
  const found = [
    ["Median of a run", result.wall_p50_ns, format.duration],
    ["Measured, whole plan", result.measured_ns, format.duration],
    ["Predicted", result.predicted_ns, format.duration],
    ["MACs", result.macs, format.macs],
    ["FLOPs", result.flops, format.flops],
    ["Runs", result.runs, format.count],
    ["Threads", result.threads, format.count],
  ]
    .filter(([, value]) => value != null)
    .map(([name, value, say]) => [name, say(value)]);
  if (!found.length && !run && !plan && !device)
    return job.state === "cancelled" ? notice("info", "Cancelled", "The job left no result.") : null;
  return [el("h2", {}, "Results"), found.length ? figures(found) : null, el("p", { class: "form row" }, plan, run, device)];
}

function asked(job, model, devices) {
  const shapes = [
    ...Object.entries(job.request.dims ?? {}).map(([name, size]) => `${name} = ${size}`),
    ...Object.entries(job.request.shapes ?? {}).map(([name, shape]) => `${name}: [${shape.join(",")}]`),
  ];
  const rest = Object.entries(job.request).filter(([name, value]) => !["dims", "shapes"].includes(name) && value != null);
  return facts([
    ["Kind", TITLES[job.kind] ?? job.kind],
    ["Model", model ? modelLink(model.name) : job.model_digest ? el("code", {}, job.model_digest) : null],
    ["Device", deviceLink(job.device, devices.get(job.device) ?? job.device)],
    ["Shapes", shapes.join(", ")],
    ...rest.map(([name, value]) => [capital(name.replace(/_s$/, ", s").replaceAll("_", " ")), String(value)]),
    ["Created", format.when(job.created_us)],
    ["Attempts", job.attempts > 1 ? String(job.attempts) : null],
  ]);
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}
