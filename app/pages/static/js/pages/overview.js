// The overview: traffic and health, read every two seconds; devices and last measurements, read once.

import { get, list } from "../api.js";
import { el, failure, fill, notice } from "../dom.js";
import { count, duration, number, when } from "../format.js";
import { sparkline } from "../sparkline.js";

const EVERY_MS = 2000;
const KEPT = 90; // points of a sparkline: three minutes

const GAUGES = [
  { key: "rate", title: "Requests per second", of: (live) => live.together.requests_per_s, format: (value) => number(value) },
  { key: "p50", title: "Latency, p50", of: (live) => live.together.p50_ns, format: duration },
  { key: "p99", title: "Latency, p99", of: (live) => live.together.p99_ns, format: duration },
  { key: "queue", title: "Requests waiting", of: (live) => live.waiting, format: count },
  { key: "rows", title: "Rows per batch", of: (live) => live.together.batch_rows, format: number },
];

const health = document.getElementById("health");
const gauges = GAUGES.map((gauge) => {
  const spark = sparkline(gauge.title);
  const value = el("dd", {}, "–");
  return {
    ...gauge,
    spark,
    value,
    past: [],
    element: el(
      "dl",
      { class: "card gauge", id: `live-${gauge.key}` },
      el("div", {}, el("dt", {}, gauge.title), value),
      spark.element,
    ),
  };
});
const cards = fill(
  document.getElementById("traffic"),
  gauges.map((gauge) => gauge.element),
);

async function watch() {
  try {
    if (!document.hidden) show(await get("/v1/live"));
  } catch (error) {
    fill(health, pill("bad", "The service does not answer"), ` ${error.message}`);
  }
  setTimeout(watch, EVERY_MS);
}

function show(live) {
  for (const gauge of gauges) {
    const value = gauge.of(live);
    gauge.past = [...gauge.past, value ?? null].slice(-KEPT);
    gauge.value.textContent = gauge.format(value);
    gauge.spark.update(gauge.past);
  }
  cards.title = `Over the last ${live.window_s} s`;
  showHealth(live.health);
  const rows = document.querySelectorAll("#models tbody tr").length;
  if (rows !== live.models.length) location.reload(); // a model came or went
  for (const model of live.models) {
    const row = document.querySelector(`tr[data-model="${CSS.escape(model.name)}"][data-version="${CSS.escape(model.version)}"]`);
    if (!row) return;
    put(row, "rate", number(model.requests_per_s));
    put(row, "p50", duration(model.p50_ns));
    put(row, "p99", duration(model.p99_ns));
    const state = row.querySelector(".state");
    if (state.textContent !== model.state) location.reload(); // it was loaded or unloaded: its inputs and links are new
  }
}

function showHealth(now) {
  const engines = now.engine_processes;
  const up = engines.filter((engine) => engine.up).length;
  const restarts = engines.reduce((sum, engine) => sum + engine.restarts, 0);
  const said = [
    now.ready ? pill("good", "Ready") : pill("bad", `Not ready: ${now.reason}`),
    now.database === "ok"
      ? pill("good", "Database available")
      : pill("bad", `Database unavailable, ${count(now.buffered_writes)} writes waiting`),
    engines.length
      ? pill(
          up === engines.length && !restarts ? "good" : "warn",
          `${up} of ${engines.length} engine processes up, ${restarts} restarts`,
        )
      : pill("good", "Models run in the service's process"),
  ];
  if (now.dropped_writes) said.push(pill("bad", `${count(now.dropped_writes)} writes lost`));
  const text = said.map((one) => one.textContent).join();
  if (text === health.dataset.said) return; // a screen reader would read an unchanged status again
  health.dataset.said = text;
  fill(
    health,
    said.flatMap((one) => [one, " "]),
  );
}

const pill = (kind, text) => el("span", { class: `state ${kind}` }, text);

function put(row, figure, text) {
  row.querySelector(`[data-figure="${figure}"]`).textContent = text;
}

async function showDevices() {
  const place = document.getElementById("devices");
  try {
    const devices = await list("/v1/devices", {}, 50);
    fill(
      place,
      devices.length
        ? el(
            "div",
            { class: "cards" },
            devices.map((device) =>
              el(
                "div",
                { class: "card" },
                el("h3", {}, el("a", { href: `/devices/${device.fingerprint}` }, device.name)),
                el("p", { class: "quiet" }, el("code", {}, device.fingerprint), ` · measured ${when(device.updated_us)}`),
              ),
            ),
          )
        : notice(
            "info",
            "No device was measured yet",
            el("code", {}, "edgewise device"),
            " measures this machine, and so does making the first plan here.",
          ),
    );
  } catch (error) {
    fill(place, failure("The devices could not be read", error));
  }
}

async function showMeasured() {
  const runs = await list("/v1/profiles", { kind: "trace" }, 200);
  for (const row of document.querySelectorAll("#models tbody tr")) {
    const last = runs.find((run) => run.model_digest === row.dataset.digest && run.wall_p50_ns != null);
    if (!last) continue;
    const href = `/models/${encodeURIComponent(row.dataset.model)}?version=${row.dataset.version}&run=${last.id}`;
    fill(
      row.querySelector('[data-figure="measured"]'),
      el("a", { href, title: when(last.created_us) }, duration(last.wall_p50_ns)),
    );
  }
}

watch();
showDevices();
showMeasured().catch((error) => document.getElementById("models")?.after(failure("The runs could not be read", error)));
