// All jobs, newest first. The list is read again while a job is queued or running.

import { list } from "../api.js";
import { el, notice } from "../dom.js";
import * as format from "../format.js";
import { deviceNames, modelsByDigest, part, progressText, stateWord } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";

const LOOK_MS = 3000;
const KINDS = { tune: "tune", trace: "measure", profile: "count", probe: "measure the device" };
const OPEN = ["queued", "running"];

await part("jobs", "The jobs cannot be read", async () => {
  const [jobs, models, devices] = await Promise.all([list("/v1/jobs"), modelsByDigest(), deviceNames()]);
  if (!jobs.length)
    return notice(
      "info",
      "There is no job yet",
      "Open a model's Work page to count, measure or tune it. ",
      el("a", { href: "/" }, "Models"),
    );
  const columns = [
    { key: "id", title: "Job", format: (id, row) => `${id} · ${KINDS[row.kind] ?? row.kind}` },
    {
      key: "state",
      title: "State",
      format: (state, row) => (row.cancel_asked && OPEN.includes(state) ? "stopping" : stateWord(state)),
    },
    { key: "model", title: "Model", value: (row) => models.get(row.model_digest)?.name ?? row.model_digest.slice(0, 12) },
    { key: "device", title: "Device", format: (fingerprint) => devices.get(fingerprint) ?? fingerprint },
    { key: "far", title: "Progress", value: progressText },
    { key: "created_us", title: "Created", format: format.when },
    { key: "started_us", title: "Started", format: format.when, hidden: true },
    { key: "finished_us", title: "Ended", format: format.when },
    { key: "attempts", title: "Attempts", numeric: true, hidden: true },
    { key: "owner", title: "Worker", hidden: true },
    { key: "error", title: "Error", hidden: true },
  ];
  const { sort, q, cols } = read();
  const grid = table(columns, jobs, {
    label: "Jobs",
    noun: "job",
    sort,
    q,
    cols,
    onState: write,
    id: (row) => row.id,
    href: (row) => `/jobs/${row.id}`,
    mark: (row) => (row.state === "failed" ? "bad" : ""),
  });
  onChange((state) => grid.show(state));
  keep(grid, jobs);
  return grid.element;
});

/** Read the list again while a job is queued or running and the page is visible. */
async function keep(grid, jobs) {
  while (jobs.some((job) => OPEN.includes(job.state))) {
    await new Promise((wake) => setTimeout(wake, LOOK_MS));
    if (document.hidden) continue;
    jobs = await list("/v1/jobs");
    grid.update(jobs);
  }
}
