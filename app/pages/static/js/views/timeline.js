// What every thread did in the median run, on a canvas: zoomed by wheel, buttons or keys, and read segment by segment.

import { colour, seriesColour } from "../chart.js";
import { el, fill, notice, onTheme } from "../dom.js";
import { duration } from "../format.js";

const LANE = 30;
const AXIS = 42; // room for the ticks below
const LEFT = 70; // room for the threads' names
const NAMED = 46; // pixels of a segment that its name needs

/** timeline(run, {traceHref, onOpen}) → a node. traceHref: where the Perfetto trace is, null where there is none. */
export function timeline(run, { traceHref, onOpen }) {
  if (!run.timeline)
    return notice(
      "info",
      "There is no timeline",
      run.kind === "trace"
        ? "This run was stored without one."
        : "Nothing was measured: measure the model, or choose a measured run above.",
    );
  const threads = run.timeline.threads.map((segments) =>
    segments.map(([op, start, length, doing]) => ({ op, start, length, doing })),
  );
  const flat = threads.flatMap((segments, thread) => segments.map((segment) => ({ ...segment, thread })));
  const kinds = kindsOf(run);
  const wall = run.timeline.wall_ns;
  let span = { from: 0, to: wall };
  let chosen = null;

  const canvas = el("canvas", { "aria-hidden": "true" });
  const said = el("output", { class: "said" });
  const box = el(
    "div",
    {
      class: "timeline",
      role: "application",
      tabindex: "0",
      "aria-label":
        "Timeline of threads. Left and right go from step to step, up and down from thread to thread, Enter opens a step, plus and minus zoom, 0 shows all.",
      onkeydown: key,
      onpointermove: hover,
      onpointerdown: drag,
      ondblclick: all,
      onclick: () => chosen && !dragged && onOpen(run.ops[chosen.op].index),
    },
    canvas,
  );
  let dragged = false;
  box.addEventListener("wheel", wheel, { passive: false });
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(box);
  onTheme(box, draw);

  const px = (ns) => LEFT + ((ns - span.from) / (span.to - span.from)) * (box.clientWidth - LEFT - 8);
  const ns = (x) => span.from + ((x - LEFT) / (box.clientWidth - LEFT - 8)) * (span.to - span.from);

  function draw() {
    const [width, height] = [box.clientWidth, threads.length * LANE + AXIS];
    if (!width) return;
    const ratio = devicePixelRatio;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.setProperty("height", `${height}px`);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui";
    drawAxis(pen, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT, height);
    pen.clip();
    for (const segment of flat) drawSegment(pen, segment);
    pen.restore();
  }

  function drawAxis(pen, width, height) {
    pen.fillStyle = colour("--text-2");
    pen.strokeStyle = colour("--line");
    threads.forEach((_, thread) => pen.fillText(`thread ${thread}`, 4, thread * LANE + 19));
    pen.textAlign = "center";
    for (const tick of ticks(span.from, span.to, Math.max(2, Math.floor(width / 100)))) {
      const x = px(tick);
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, threads.length * LANE + 4);
      pen.stroke();
      if (x > LEFT + 20 && x < width - 24) pen.fillText(duration(tick), x, threads.length * LANE + 18);
    }
    pen.fillText("time since the run began", (LEFT + width) / 2, height - 5);
    pen.textAlign = "left";
  }

  function drawSegment(pen, segment) {
    const [x, end] = [px(segment.start), px(segment.start + segment.length)];
    if (end < LEFT || x > box.clientWidth) return;
    const y = segment.thread * LANE + 3;
    const wide = Math.max(0.5, end - x - (end - x > 3 ? 1 : 0));
    pen.fillStyle = segment.doing === "wait" ? colour("--line-2") : kinds.get(run.ops[segment.op].op).colour();
    pen.globalAlpha = segment.doing === "wait" ? 0.45 : 0.85;
    pen.fillRect(x, segment.doing === "wait" ? y + 9 : y, wide, segment.doing === "wait" ? 6 : LANE - 6);
    pen.globalAlpha = 1;
    if (segment === chosen) {
      pen.strokeStyle = colour("--text");
      pen.lineWidth = 2;
      pen.strokeRect(x, y, Math.max(2, wide), LANE - 6);
      pen.lineWidth = 1;
    }
    if (wide > NAMED && segment.doing === "work") {
      pen.save();
      pen.beginPath();
      pen.rect(x, y, wide, LANE);
      pen.clip();
      pen.fillStyle = colour("--ground");
      pen.fillText(run.ops[segment.op].name, Math.max(x, LEFT) + 4, y + 16);
      pen.restore();
    }
  }

  function choose(segment) {
    if (segment === chosen) return;
    chosen = segment;
    const op = segment && run.ops[segment.op];
    said.textContent = segment
      ? `Thread ${segment.thread}: ${segment.doing === "wait" ? "waits after" : ""} ${op.name} (${op.op}), ${duration(segment.length)} from ${duration(segment.start)}`
      : "";
    draw();
  }

  function hover(event) {
    const { left, top } = box.getBoundingClientRect();
    const at = ns(event.clientX - left);
    const thread = Math.floor((event.clientY - top) / LANE);
    choose(flat.find((one) => one.thread === thread && one.start <= at && at <= one.start + one.length) ?? chosen);
  }

  function zoom(factor, at = (span.from + span.to) / 2) {
    const length = Math.min(wall, Math.max(200, (span.to - span.from) / factor));
    const from = at - ((at - span.from) / (span.to - span.from)) * length;
    shift(from, length);
  }

  function shift(from, length = span.to - span.from) {
    const start = Math.max(0, Math.min(wall - length, from));
    span = { from: start, to: start + length };
    draw();
  }

  function all() {
    shift(0, wall);
  }

  function wheel(event) {
    const { left } = box.getBoundingClientRect();
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!event.ctrlKey && !event.metaKey && !sideways) return; // the page scrolls
    event.preventDefault();
    if (sideways && !event.ctrlKey) shift(ns(LEFT + event.deltaX));
    else zoom(Math.exp(-event.deltaY / 200), ns(event.clientX - left));
  }

  function drag(event) {
    const [from, was] = [event.clientX, span];
    dragged = false;
    const move = (next) => {
      if (Math.abs(next.clientX - from) < 4 && !dragged) return;
      dragged = true;
      span = was;
      shift(was.from - ((next.clientX - from) * (was.to - was.from)) / (box.clientWidth - LEFT));
    };
    const end = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
  }

  function key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const other = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) walk(step);
    else if (other) cross(other);
    else if (event.key === "Enter" && chosen) onOpen(run.ops[chosen.op].index);
    else if (event.key === "+" || event.key === "=") zoom(1.5, chosen?.start);
    else if (event.key === "-") zoom(1 / 1.5, chosen?.start);
    else if (event.key === "0") all();
    else return;
    event.preventDefault();
  }

  function walk(step) {
    const mine = flat.filter((one) => one.thread === (chosen?.thread ?? 0));
    reveal(mine[Math.min(mine.length - 1, Math.max(0, mine.indexOf(chosen) + step))]);
  }

  function cross(step) {
    const thread = Math.min(threads.length - 1, Math.max(0, (chosen?.thread ?? 0) + step));
    const at = chosen?.start ?? 0;
    reveal(
      flat
        .filter((one) => one.thread === thread)
        .reduce((best, one) => (best && Math.abs(best.start - at) <= Math.abs(one.start - at) ? best : one), null),
    );
  }

  function reveal(segment) {
    if (!segment) return;
    choose(segment);
    if (segment.start < span.from || segment.start + segment.length > span.to) shift(segment.start - (span.to - span.from) / 3);
  }

  const legend = el("p", { class: "legend" });
  const showLegend = () =>
    fill(
      legend,
      [...kinds]
        .slice(0, 8)
        .map(([kind, { series }]) => el("span", { class: "key", style: { "--key": `var(--series-${series + 1})` } }, kind)),
      el("span", { class: "key", style: { "--key": "var(--line-2)" } }, "waits for other threads"),
    );
  showLegend();
  return el(
    "div",
    {},
    el(
      "div",
      { class: "toolbar" },
      el(
        "span",
        { class: "buttons" },
        tool("+", "+ Zoom in", () => zoom(1.5)),
        tool("−", "− Zoom out", () => zoom(1 / 1.5)),
        tool("All", "All: show the whole run", all),
      ),
      traceHref ? el("a", { class: "button", href: traceHref, download: "" }, "Download Perfetto trace") : null,
      el(
        "span",
        { class: "quiet" },
        `The median run, ${duration(wall)} on ${threads.length} thread${threads.length === 1 ? "" : "s"}. Ctrl and scroll to zoom, drag to move.`,
      ),
    ),
    legend,
    box,
    said,
  );
}

const tool = (text, label, onclick) => el("button", { type: "button", "aria-label": label, title: label, onclick }, text);

/** Types of op, those that take the most first, each with a colour; beyond seven they share one. */
function kindsOf(run) {
  const sums = new Map();
  for (const op of run.ops) sums.set(op.op, (sums.get(op.op) ?? 0) + (op.p50_ns ?? 0));
  const names = [...sums].toSorted(([, one], [, other]) => other - one).map(([name]) => name);
  return new Map(names.map((name, at) => [name, { series: Math.min(at, 7), colour: () => seriesColour(Math.min(at, 7)) }]));
}

/** Round numbers between two, about so many. */
function ticks(from, to, about) {
  const rough = (to - from) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  return Array.from(
    { length: Math.floor(to / step) - Math.ceil(from / step) + 1 },
    (_, at) => (Math.ceil(from / step) + at) * step,
  );
}
