// Charts: uPlot with titles and units on every axis, in the theme's colours, and each with its data as a table.

import uPlot from "../vendor/uPlot.esm.js";
import { el, fill, onTheme } from "./dom.js";
import { when } from "./format.js";

const MOST_ROWS = 500; // of a data table
const WHOLE = [1, 2, 5].flatMap((step) => [1, 10, 100, 1e3, 1e4, 1e5].map((power) => step * power)).sort((a, b) => a - b);

/** A custom property of the style sheet, as it is in the present theme. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colour of the nth series; they repeat after eight. */
export const seriesColour = (at) => colour(`--series-${(at % 8) + 1}`);

/**
 * Lines over x. chart: {label, x: {title, values, format, time, whole}, y: {title, format, log}, series: [{name, values, colour, area, dashed,
 * stepped}], height, marks: [{at, text}] (vertical lines), onCursor(index or null)}. Titles hold the unit. Returns {element, update(chart)}.
 */
export function lines(chart) {
  const frame = framed(
    chart,
    (width) => new uPlot(lineOptions(chart, width), [chart.x.values, ...chart.series.map((one) => one.values)], frame.canvas),
    () => lineTable(chart),
  );
  return {
    element: frame.element,
    update(next) {
      chart = { ...chart, ...next };
      frame.renew();
    },
  };
}

function lineOptions(chart, width) {
  const series = chart.series.map((one, at) => {
    const stroke = one.colour ? colour(one.colour) : seriesColour(at);
    return {
      label: one.name,
      stroke,
      width: 1.5,
      dash: one.dashed ? [5, 4] : undefined,
      value: (_, value) => format(chart.y, value),
      fill: one.area ? `${stroke}33` : undefined,
      paths: one.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      points: { show: !one.stepped && chart.x.values.length < 60 },
    };
  });
  return {
    width,
    height: chart.height ?? 260,
    series: [{ label: chart.x.title, value: (_, value) => format(chart.x, value) }, ...series],
    scales: {
      x: { time: Boolean(chart.x.time) },
      y: chart.y.log ? { distr: 3 } : { range: (_, low, high) => rangeFromZero(low, high) },
    },
    axes: [axis(chart.x), { ...axis(chart.y), size: 78, space: 36 }],
    legend: { live: true },
    cursor: { drag: { x: true, y: false } },
    hooks: {
      setCursor: [(plot) => chart.onCursor?.(plot.cursor.idx ?? null)],
      draw: [(plot) => (chart.marks ?? []).forEach((mark) => drawMark(plot, mark))],
    },
  };
}

const rangeFromZero = (low, high) => [Math.min(0, low ?? 0), (high || 1) * 1.05];

function format(side, value) {
  if (value == null) return "–";
  if (side.format) return side.format(value);
  return side.time ? when(value * 1e6) : String(value);
}

function axis(side) {
  const line = { stroke: colour("--line"), width: 1 };
  const values = (_, ticks) => (side.time ? clock(ticks) : ticks.map((tick) => (tick == null ? "" : format(side, tick))));
  const log = side.log
    ? { splits: (plot, at, low, high) => decades(low, high, room(plot, at)), filter: (_, ticks) => ticks }
    : {};
  const whole = side.whole ? { incrs: WHOLE } : {};
  return {
    label: side.title,
    stroke: colour("--text-2"),
    grid: line,
    ticks: line,
    values,
    space: side.time ? 80 : 50,
    font: "12px system-ui",
    labelFont: "12px system-ui",
    labelSize: 20,
    gap: 4,
    ...log,
    ...whole,
  };
}

/** How many labels an axis has room for: 0 is the one below, 1 the one beside. */
const room = (plot, at) => (at === 0 ? plot.bbox.width / 60 : plot.bbox.height / 24) / devicePixelRatio;

/** Ticks of a logarithmic axis, at most so many: powers of ten, with 2 and 5 times them where there is room. */
function decades(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const steps = (last - first) * 3 > most ? [1] : [1, 2, 5];
  const each = Math.max(1, Math.ceil((last - first) / Math.max(2, most)));
  const powers = Array.from({ length: last - first + 1 }, (_, at) => first + at).filter((power) => power % each === 0);
  return powers.flatMap((power) => steps.map((step) => step * 10 ** power)).filter((tick) => tick >= low && tick <= high);
}

/** Seconds since 1970 as times of day; as days where they are days apart. */
function clock(ticks) {
  const apart = ticks.length > 1 ? ticks[1] - ticks[0] : 0;
  return ticks.map((tick) => {
    const text = when(tick * 1e6);
    return apart >= 86400 ? text.slice(0, 10) : text.slice(11, apart < 60 ? 19 : 16);
  });
}

function drawMark(plot, mark) {
  const { ctx, bbox } = plot;
  const x = plot.valToPos(mark.at, "x", true);
  if (x < bbox.left || x > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--text-2");
  ctx.setLineDash([4, 4]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  write(ctx, mark.text, x, bbox.top + 14 * devicePixelRatio, x > bbox.left + bbox.width / 2 ? "right" : "left");
  ctx.restore();
}

function write(ctx, text, x, y, align) {
  ctx.font = `${12 * devicePixelRatio}px system-ui`;
  ctx.textAlign = align;
  ctx.fillText(text, align === "right" ? x - 6 : x + 6, y);
}

const lineTable = (chart) =>
  dataTable(
    chart.label,
    [chart.x.title, ...chart.series.map((one) => one.name)],
    chart.x.values.map((x, at) => [format(chart.x, x), ...chart.series.map((one) => format(chart.y, one.values[at]))]),
  );

/**
 * Points on logarithmic axes, with lines. chart: {label, x: {title, format}, y: {title, format}, points: [{x, y, name, colour, ring}],
 * lines: [{name, from: [x, y], to: [x, y], dashed, labelAt}], height, onPick(point), describe(point)}. colour: a CSS colour, or a
 * custom property, which follows the theme; ring: drawn around what stands out; labelAt: where along a sloping line its name
 * begins, 0…1. The plot takes the focus: arrow keys go from point to point, Enter picks. Dragging zooms, a double click shows all.
 * Returns {element, update(chart), select(name)}.
 */
export function scatter(chart) {
  let points = [];
  let chosen = null;
  let plot = null;
  const said = el("output", { class: "said" });
  const frame = framed(chart, make, () => pointTable(chart));
  frame.canvas.tabIndex = 0;
  frame.canvas.setAttribute("role", "application");
  frame.canvas.setAttribute("aria-label", `${chart.label}. Arrow keys go from point to point, Enter opens one.`);
  frame.canvas.addEventListener("keydown", key);
  frame.canvas.addEventListener("click", () => chosen && chart.onPick?.(chosen));
  frame.element.insertBefore(said, frame.canvas.nextSibling);

  function make(width) {
    points = chart.points.filter((point) => point.x > 0 && point.y > 0).toSorted((a, b) => a.x - b.x);
    const ends = chart.lines.flatMap((line) => [line.from, line.to]);
    const whole = {
      x: extent(points.map((point) => point.x).concat(ends.map(([x]) => x))),
      y: extent(points.map((point) => point.y).concat(ends.map(([, y]) => y))),
    };
    const show = (made) =>
      made.batch(() => Object.entries(whole).forEach(([side, [min, max]]) => made.setScale(side, { min, max })));
    plot = new uPlot(
      {
        width,
        height: chart.height ?? 420,
        legend: { show: false },
        series: [{}, { paths: () => null, points: { show: false } }],
        scales: { x: { time: false, distr: 3, auto: false }, y: { distr: 3, auto: false } },
        axes: [axis({ ...chart.x, log: true }), { ...axis({ ...chart.y, log: true }), size: 106 }],
        cursor: {
          drag: { x: true, y: true, uni: 12 },
          points: { show: false },
          bind: {
            dblclick: () => () => {
              show(plot);
              return null;
            },
          },
        },
        hooks: { setCursor: [(made) => hover(made)], draw: [paint] },
      },
      [points.map((point) => point.x), points.map((point) => point.y)],
      frame.canvas,
    );
    show(plot);
    return plot;
  }

  function paint(made) {
    const { ctx, bbox } = made;
    const at = ([x, y]) => [made.valToPos(x, "x", true), made.valToPos(y, "y", true)];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const line of chart.lines) drawLine(ctx, line, at(line.from), at(line.to), bbox);
    for (const point of points) drawPoint(ctx, point, at([point.x, point.y]), point === chosen);
    ctx.restore();
  }

  function hover(made) {
    const { left, top } = made.cursor;
    if (left < 0) return;
    const far = (point) => Math.hypot(made.valToPos(point.x, "x") - left, made.valToPos(point.y, "y") - top);
    const near = points.reduce((best, point) => (far(point) < best.px ? { point, px: far(point) } : best), {
      point: null,
      px: 24,
    });
    if (near.point) choose(near.point);
  }

  function choose(point) {
    if (point === chosen) return;
    chosen = point;
    said.textContent = point ? (chart.describe?.(point) ?? point.name) : "";
    plot?.redraw(false);
  }

  function key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && chosen) chart.onPick?.(chosen);
    if (!step || !points.length) return;
    event.preventDefault();
    choose(points[Math.min(points.length - 1, Math.max(0, points.indexOf(chosen) + step))]);
  }

  return {
    element: frame.element,
    update(next) {
      chart = { ...chart, ...next };
      chosen = null;
      frame.renew();
    },
    select: (name) => choose(points.find((point) => point.name === name) ?? null),
  };
}

/** From a bit below the least to a bit above the most, on a logarithmic axis. */
function extent(values) {
  const good = values.filter((value) => value > 0 && Number.isFinite(value));
  return good.length ? [Math.min(...good) / 2, Math.max(...good) * 2] : [1, 10];
}

function drawLine(ctx, line, [x0, y0], [x1, y1], bbox) {
  ctx.strokeStyle = ctx.fillStyle = colour("--text-2");
  ctx.setLineDash(line.dashed ? [5 * devicePixelRatio, 4 * devicePixelRatio] : []);
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
  ctx.setLineDash([]);
  if (y0 === y1) return write(ctx, line.name, Math.min(x1, bbox.left + bbox.width) - 4, y0 - 6 * devicePixelRatio, "right");
  const x = Math.max(x0 + (x1 - x0) * (line.labelAt ?? 0), bbox.left + 8);
  const y = y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
  ctx.save();
  ctx.translate(x, y);
  ctx.rotate(Math.atan2(y1 - y0, x1 - x0));
  write(ctx, line.name, 0, -5 * devicePixelRatio, "left");
  return ctx.restore();
}

function drawPoint(ctx, point, [x, y], chosen) {
  const radius = (chosen ? 7 : 4.5) * devicePixelRatio;
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  ctx.fillStyle = point.colour?.startsWith("--") ? colour(point.colour) : (point.colour ?? colour("--accent"));
  ctx.globalAlpha = 0.85;
  ctx.fill();
  ctx.globalAlpha = 1;
  if (!chosen && !point.ring) return;
  ctx.beginPath();
  ctx.arc(x, y, radius + 3 * devicePixelRatio, 0, 2 * Math.PI);
  ctx.strokeStyle = point.ring ? colour("--bad") : colour("--text");
  ctx.stroke();
}

const pointTable = (chart) =>
  dataTable(
    chart.label,
    ["name", chart.x.title, chart.y.title],
    chart.points.map((point) => [point.name, format(chart.x, point.x), format(chart.y, point.y)]),
  );

/** A figure that makes its plot when it has a width, and again when the theme changes; its data are a table that opens. */
function framed(chart, make, tabulate) {
  const canvas = el("div", { class: "plot" });
  const data = el(
    "details",
    { class: "data", ontoggle: () => data.open && fill(data, data.firstElementChild, tabulate()) },
    el("summary", {}, "Data as a table"),
  );
  const element = el("figure", { class: "chart", "aria-label": chart.label }, canvas, data);
  let plot = null;
  function renew() {
    const width = Math.floor(canvas.clientWidth);
    if (!width) return;
    plot?.destroy();
    plot = make(width);
    if (data.open) fill(data, data.firstElementChild, tabulate());
  }
  new ResizeObserver(() => {
    const width = Math.floor(canvas.clientWidth);
    if (!width) return;
    if (!plot) renew();
    else if (plot.width !== width) plot.setSize({ width, height: plot.height });
  }).observe(canvas);
  onTheme(element, renew);
  return { element, canvas, renew };
}

function dataTable(label, titles, rows) {
  const cells = (tag, row) =>
    row.map((text, at) => el(tag, at && tag === "td" ? { class: "n" } : tag === "th" ? { scope: "col" } : {}, text));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}: data` },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, cells("th", titles))),
      el(
        "tbody",
        {},
        rows.slice(0, MOST_ROWS).map((row) => el("tr", {}, cells("td", row))),
      ),
    ),
    rows.length > MOST_ROWS ? el("p", { class: "quiet" }, `The first ${MOST_ROWS} of ${rows.length}.`) : null,
  );
}
