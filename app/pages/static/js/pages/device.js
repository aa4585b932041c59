// One device: its hardware, its measured rates and costs, and the source of each number.

import { get } from "../api.js";
import { bars } from "../bars.js";
import { scatter, seriesColour } from "../chart.js";
import { disturbed, el, figures, fill } from "../dom.js";
import * as format from "../format.js";
import { choice, facts, field, part, plain } from "../parts.js";
import { onChange, read, write } from "../state.js";
import { table } from "../table.js";

const PATTERNS = { triad: "triad (a = b + s·c)", read: "read", copy: "copy", update: "update in place" };
const OVERHEADS = {
  timer_resolution: "Smallest step of the clock",
  timer_call: "Reading the clock",
  native_call: "Calling a native function",
  numpy_call: "Calling numpy",
  thread_handoff: "Waking another Python thread",
};
const SHOWN_ISA = /^(sse4\.2|avx|avx2|fma|f16c|avx512|avxvnni|amx|neon|asimd|sve|dotprod|bf16|i8mm|fp16)/;
const threadsOf = (count) => `${count} thread${count > 1 ? "s" : ""}`;

await part("device", "The device cannot be read", async (place) => {
  const stored = await get(`/v1/devices/${place.dataset.fingerprint}`);
  const { profile } = stored;
  document.title = `${stored.name} · Edgewise`;
  fill(document.getElementById("title"), stored.name, " ", el("small", {}, el("code", {}, stored.fingerprint)));
  return [
    disturbed(profile.stability.quietness, "The figures of this device are too low: measure it again when it is quiet"),
    ...machine(profile, stored),
    el("h2", {}, "Arithmetic peaks"),
    ...peaks(profile),
    el("h2", {}, "Bandwidth by level"),
    ladder(profile),
    el("h2", {}, "Overheads"),
    overheads(profile),
    el("h2", {}, "Stability"),
    ...stability(profile),
    el("h2", {}, "Source of every number"),
    provenance(profile),
  ];
});

function machine({ hardware, confinement, conditions, ...profile }, stored) {
  const caches = hardware.caches.map(
    (cache) => `L${cache.level} ${cache.kind} ${format.bytes(cache.nbytes)}${cache.instances > 1 ? ` × ${cache.instances}` : ""}`,
  );
  return [
    figures([
      [
        "Cores",
        hardware.logical_cores === hardware.physical_cores
          ? String(hardware.physical_cores)
          : `${hardware.physical_cores}, ${hardware.logical_cores} threads`,
      ],
      ["Memory", format.bytes(hardware.memory_bytes)],
      ["Processors this process may use", String(confinement.affinity)],
      ["CPU quota", confinement.cgroup_cpus == null ? "none" : `${confinement.cgroup_cpus} CPUs`],
      ["Memory limit", confinement.cgroup_memory_bytes == null ? "none" : format.bytes(confinement.cgroup_memory_bytes)],
    ]),
    facts([
      ["CPU", `${hardware.vendor} ${hardware.model}`],
      ["Architecture", `${hardware.architecture}, ${hardware.system}`],
      ["Caches", caches.join(", ")],
      ["NUMA nodes", hardware.numa.length || null],
      ["Instruction sets", isas(hardware.isa)],
      ["Compiled for", hardware.llvm_cpu],
      ["BLAS", conditions.blas],
      ["Governor", conditions.governor],
      ["Load average before", conditions.load_average?.toFixed(2)],
      ["Measured", `${new Date(profile.probed_at).toLocaleString("sv-SE")}, for ${profile.probe_seconds.toFixed(1)} s`],
      ["First seen", format.when(stored.created_us)],
    ]),
  ];
}

function isas(all) {
  const main = all.filter((name) => SHOWN_ISA.test(name));
  return el("details", {}, el("summary", {}, main.join(" ") || `${all.length} features`), el("code", {}, all.join(" ")));
}

function peaks({ peaks: all }) {
  const precisions = [...new Set(all.map((peak) => peak.precision))];
  return precisions.flatMap((precision) => [
    el("h3", {}, precision),
    bars(
      `Peaks of ${precision}, ${all.find((peak) => peak.precision === precision).rate.unit}`,
      all
        .filter((peak) => peak.precision === precision)
        .map(({ kind, isa, threads, rate }) => ({
          name: kind === "gemm" ? `matrix product, BLAS · ${threadsOf(threads)}` : `${isa} · ${threadsOf(threads)}`,
          value: rate.value,
          text: format.quantity(rate.value, rate.unit),
          note: `${rate.source}, spread ${format.percent(rate.spread_percent)}`,
          colour: kind === "gemm" ? "var(--series-3)" : "var(--series-1)",
        })),
    ),
  ]);
}

function ladder({ bandwidths }) {
  const patterns = [...new Set(bandwidths.map((found) => found.pattern))];
  const select = choice(
    patterns.map((pattern) => [pattern, PATTERNS[pattern] ?? pattern]),
    read().pattern ?? "triad",
    { onchange: () => write({ pattern: select.value }) },
  );
  const list = el("div", {});
  const chart = scatter({
    label: "Bandwidth by working set",
    x: { title: "working set of all threads, bytes", format: format.bytes },
    y: { title: "bandwidth, bytes per second", format: (value) => format.rate(value, "B") },
    ...drawn(select.value),
  });

  function drawn(pattern) {
    const found = bandwidths
      .filter((item) => item.pattern === pattern)
      .toSorted((a, b) => a.working_set_bytes - b.working_set_bytes);
    const counts = [...new Set(found.map((item) => item.threads))].sort((a, b) => a - b);
    fill(
      list,
      bars(
        `Bandwidth, ${pattern}`,
        found
          .toSorted((a, b) => a.threads - b.threads)
          .map(({ level, threads, rate, working_set_bytes }) => ({
            name: `${level} · ${threadsOf(threads)}`,
            value: rate.value,
            text: format.rate(rate.value, "B"),
            note: `${format.bytes(working_set_bytes)}, ${rate.source}, spread ${format.percent(rate.spread_percent)}`,
            colour: `var(--series-${(counts.indexOf(threads) % 8) + 1})`,
          })),
      ),
    );
    return {
      points: found.map(({ level, threads, rate, working_set_bytes }) => ({
        x: working_set_bytes,
        y: rate.value,
        colour: seriesColour(counts.indexOf(threads)),
        name: `${level}, ${threadsOf(threads)}: ${format.rate(rate.value, "B")} over ${format.bytes(working_set_bytes)}`,
      })),
      lines: counts.flatMap((threads) => {
        const steps = found.filter((item) => item.threads === threads).map((item) => [item.working_set_bytes, item.rate.value]);
        return steps.slice(1).map((to, at) => ({ name: at === 0 ? threadsOf(threads) : "", from: steps[at], to }));
      }),
    };
  }

  onChange(({ pattern = "triad" }) => {
    select.value = pattern;
    chart.update(drawn(pattern));
  });
  return el("div", {}, el("div", { class: "form row" }, field("Pattern", select)), chart.element, list);
}

function overheads({ overheads: all, teams }) {
  const row = (name, figure) => [
    name,
    `${figure.value.toFixed(1)} ns`,
    format.percent(figure.spread_percent),
    figure.statistic,
    figure.source,
  ];
  return plain(
    "Overheads",
    ["Operation", { text: "Time", n: true }, { text: "Spread", n: true }, "Statistic", "Source"],
    [
      ...Object.entries(OVERHEADS).map(([key, name]) => row(name, all[key])),
      ...teams.flatMap((team) => [
        row(`Starting a team of ${threadsOf(team.threads)}`, team.start),
        row(`One barrier of ${threadsOf(team.threads)}`, team.barrier),
      ]),
    ],
  );
}

function stability({ stability: found }) {
  return [
    figures([
      ["Spread of short runs of one loop", format.percent(found.jitter.spread_percent)],
      ["Drift, end against beginning", format.percent(found.drift_percent)],
      ["Taken by the hypervisor (steal)", found.steal_percent == null ? "unknown" : format.percent(found.steal_percent)],
      ["Throttled by its CPU quota", found.throttled == null ? "unknown" : `${found.throttled} times`],
    ]),
  ];
}

function provenance({ peaks: all, bandwidths, overheads: costs, teams, stability: steady }) {
  const rows = [
    ...all.map((item) => [
      `${item.precision} ${item.kind === "gemm" ? "matrix product" : item.isa}, ${threadsOf(item.threads)}`,
      item.rate,
    ]),
    ...bandwidths.map((item) => [`${item.level} ${item.pattern}, ${threadsOf(item.threads)}`, item.rate]),
    ...Object.entries(OVERHEADS).map(([key, name]) => [name, costs[key]]),
    ...teams.flatMap((team) => [
      [`team start, ${threadsOf(team.threads)}`, team.start],
      [`barrier, ${threadsOf(team.threads)}`, team.barrier],
    ]),
    ["jitter", steady.jitter],
  ].map(([name, figure], index) => ({ name, index, ...figure }));
  const say = (value, { unit }) => (["ns", "%"].includes(unit) ? `${value.toFixed(1)} ${unit}` : format.quantity(value, unit));
  const columns = [
    { key: "name", title: "Number" },
    { key: "value", title: "Value", numeric: true, format: say },
    { key: "statistic", title: "Statistic" },
    { key: "repeats", title: "Repeats", numeric: true },
    { key: "spread_percent", title: "Spread", numeric: true, format: format.percent },
    { key: "source", title: "Source" },
    { key: "measured_at", title: "When", format: (text) => new Date(text).toLocaleString("sv-SE") },
    { key: "method", title: "Method" },
  ];
  const { sort, q, cols } = read();
  const grid = table(columns, rows, {
    label: "Numbers and their sources",
    noun: "number",
    sort,
    q,
    cols,
    onState: write,
    id: (row) => row.index,
  });
  onChange((state) => grid.show(state));
  return grid.element;
}
