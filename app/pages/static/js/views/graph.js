// The graph: nodes placed by layout.js, coloured by cost. Only the pieces in sight are in the document.

import { el, onTheme, svg } from "../dom.js";
import { shorten } from "../format.js";
import { gradient, heat, part } from "../heat.js";
import { NODE, place } from "../layout.js";
import { amounts, chooser } from "./figures.js";

const [LEAST, MOST] = [0.02, 3]; // scale
const READABLE = 0.45; // below it names are left out
const START = 0.8; // scale at first, or smaller where the graph is wide
const STEP = 1.3; // of a zoom
const MARGIN = 24;

/** graph(run, {colour, onOpen, onState}) → {element, select(index or null)}. */
export function graph(run, { colour, onOpen, onState }) {
  const choices = amounts(run);
  let amount = choices.find((one) => one.key === colour) ?? choices[0];
  let laid = null;
  let view = { x: 0, y: 0, scale: 1 };
  let chosen = null;
  let whole = null; // the strip without its mark
  const at = new Map(); // node → {x, y}
  const drawn = new Map(); // piece → its group

  const scene = svg("g", {});
  const picture = svg("svg", { class: "scene", role: "none" }, scene);
  const strip = el("canvas", {
    class: "strip",
    width: "14",
    "aria-hidden": "true",
    title: "The whole model; click to go there",
    onpointerdown: jump,
  });
  const scale = el("span", { class: "scale", "aria-hidden": "true" });
  const most = el("span", { class: "quiet" });
  const box = el(
    "div",
    {
      class: "graph",
      role: "listbox",
      tabindex: "0",
      "aria-label": "Graph of ops. Arrow keys go from op to op, Enter opens one, plus and minus zoom, 0 shows all.",
      onkeydown: key,
      onpointerdown: drag,
    },
    picture,
    strip,
  );
  const state = el("p", { class: "quiet", role: "status" }, `Laying out ${run.ops.length} ops…`);
  const element = el(
    "div",
    {},
    el(
      "div",
      { class: "toolbar" },
      chooser("Colour by", choices, amount, (next) => {
        amount = next;
        paint();
        onState({ colour: next.key });
      }),
      el("span", { class: "legend" }, "0", scale, most),
      el(
        "span",
        { class: "buttons" },
        button("+", "+ Zoom in", () => zoom(STEP)),
        button("−", "− Zoom out", () => zoom(1 / STEP)),
        button("All", "All: show the whole graph", fit),
        button("Start", "Start: go to the first op", start),
      ),
    ),
    state,
    box,
  );

  box.addEventListener("wheel", wheel, { passive: false });
  new ResizeObserver(() => draw()).observe(box);
  onTheme(box, paint);
  build();

  async function build() {
    laid = await place(run.ops.length, edgesOf(run));
    for (const piece of laid.pieces) for (const node of piece.nodes) at.set(node.node, node);
    scene.append(
      svg(
        "g",
        { class: "lanes" },
        laid.lanes.map((points) => svg("path", { d: path(points) })),
      ),
    );
    state.textContent = "Drag or scroll to move, Ctrl and scroll to zoom.";
    start();
    paint();
    if (chosen != null) select(chosen);
  }

  function paint() {
    if (!laid) return;
    const top = Math.max(0, ...run.ops.map((op) => op[amount.key] ?? 0));
    scale.style.setProperty("background", gradient());
    most.textContent = `${amount.format(top)}, ${amount.unit}`;
    for (const group of drawn.values()) group.remove();
    drawn.clear();
    paintStrip(top);
    draw();
  }

  function draw() {
    if (!laid || !box.clientWidth) return;
    const { x, y, scale: k } = view;
    scene.setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    box.classList.toggle("far", k < READABLE);
    const [from, to] = [(-y - 200) / k, (box.clientHeight - y + 200) / k];
    laid.pieces.forEach((piece, index) => {
      const near = piece.bottom + NODE.height >= from && piece.top - NODE.height <= to;
      if (near && !drawn.has(index)) {
        drawn.set(index, drawPiece(piece));
        scene.append(drawn.get(index));
      } else if (!near && drawn.has(index)) {
        drawn.get(index).remove();
        drawn.delete(index);
      }
    });
    markStrip();
  }

  function drawPiece(piece) {
    const top = Math.max(0, ...run.ops.map((op) => op[amount.key] ?? 0));
    return svg(
      "g",
      { role: "none" },
      piece.edges.map((points) => svg("path", { class: "edge", d: path(points), "aria-hidden": "true" })),
      piece.nodes.map((node) => drawNode(node, top)),
    );
  }

  function drawNode({ node, x, y }, top) {
    const op = run.ops[node];
    const paints = heat(part(op[amount.key], top));
    const text = amount.format(op[amount.key]);
    return svg(
      "g",
      {
        id: `node-${node}`,
        class: `node-box${node === chosen ? " chosen" : ""}`,
        role: "option",
        "aria-selected": String(node === chosen),
        transform: `translate(${x - NODE.width / 2} ${y - NODE.height / 2})`,
        onclick: () => {
          choose(node);
          onOpen(op.index);
        },
      },
      svg("title", {}, `${op.name} (${op.op})\n${amount.title}: ${text}\n${op.output}`),
      svg("rect", { width: NODE.width, height: NODE.height, rx: 5, fill: paints.fill }),
      svg(
        "g",
        { "aria-hidden": "true", fill: paints.text },
        svg("text", { x: 8, y: 17, class: "type" }, shorten(op.op, 14)),
        svg("text", { x: NODE.width - 8, y: 17, class: "amount" }, text),
        svg("text", { x: 8, y: 33 }, shorten(op.name, 25)),
      ),
    );
  }

  function choose(node) {
    chosen = node;
    for (const one of scene.querySelectorAll(".node-box")) {
      const is = one.id === `node-${node}`;
      one.classList.toggle("chosen", is);
      one.setAttribute("aria-selected", String(is));
    }
    if (node == null) box.removeAttribute("aria-activedescendant");
    else box.setAttribute("aria-activedescendant", `node-${node}`);
  }

  /** Choose a node, and bring it into sight. */
  function select(node) {
    chosen = node;
    if (laid && node != null && at.has(node) && box.clientWidth) {
      const { x, y } = at.get(node);
      const k = Math.max(view.scale, READABLE);
      const [px, py] = [x * view.scale + view.x, y * view.scale + view.y];
      const inside = px > 60 && px < box.clientWidth - 60 && py > 40 && py < box.clientHeight - 40 && k === view.scale;
      if (!inside) view = { scale: k, x: box.clientWidth / 2 - x * k, y: box.clientHeight / 2 - y * k };
      draw();
    }
    choose(node);
  }

  function key(event) {
    const last = run.ops.length - 1;
    const now = chosen ?? -1;
    const to = {
      ArrowDown: now + 1,
      ArrowRight: now + 1,
      ArrowUp: now - 1,
      ArrowLeft: now - 1,
      Home: 0,
      End: last,
      PageDown: now + 10,
      PageUp: now - 10,
    }[event.key];
    if (to !== undefined) select(Math.min(last, Math.max(0, to)));
    else if (event.key === "Enter" && chosen != null) onOpen(run.ops[chosen].index);
    else if (event.key === "+" || event.key === "=") zoom(STEP);
    else if (event.key === "-") zoom(1 / STEP);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  }

  function zoom(factor, px = box.clientWidth / 2, py = box.clientHeight / 2) {
    const k = Math.min(MOST, Math.max(LEAST, view.scale * factor));
    view = { scale: k, x: px - ((px - view.x) * k) / view.scale, y: py - ((py - view.y) * k) / view.scale };
    draw();
  }

  function fit() {
    if (!laid) return;
    const k = Math.max(
      LEAST / 4,
      Math.min(1, (box.clientWidth - 2 * MARGIN) / laid.width, (box.clientHeight - 2 * MARGIN) / laid.height),
    );
    view = { scale: k, x: (box.clientWidth - laid.width * k) / 2 - laid.left * k, y: MARGIN - laid.top * k };
    draw();
  }

  function start() {
    if (!laid) return;
    const k = Math.max(START, Math.min(1, (box.clientWidth - 2 * MARGIN) / laid.width));
    const [first] = laid.pieces[0].nodes;
    view = { scale: k, x: box.clientWidth / 2 - first.x * k, y: MARGIN - laid.top * k };
    draw();
  }

  function wheel(event) {
    event.preventDefault();
    const { left, top } = box.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) return zoom(Math.exp(-event.deltaY / 300), event.clientX - left, event.clientY - top);
    view = { ...view, x: view.x - event.deltaX, y: view.y - event.deltaY };
    return draw();
  }

  function drag(event) {
    if (event.button || event.target === strip) return;
    const from = { x: event.clientX, y: event.clientY };
    const was = view;
    let moved = false;
    const move = (next) => {
      const [dx, dy] = [next.clientX - from.x, next.clientY - from.y];
      if (!moved && Math.hypot(dx, dy) < 4) return;
      if (!moved) box.setPointerCapture(event.pointerId);
      moved = true;
      view = { ...was, x: was.x + dx, y: was.y + dy };
      draw();
    };
    const end = () => {
      box.removeEventListener("pointermove", move);
      box.removeEventListener("pointerup", end);
      box.removeEventListener("pointercancel", end);
    };
    box.addEventListener("pointermove", move);
    box.addEventListener("pointerup", end);
    box.addEventListener("pointercancel", end);
  }

  /** The whole model from top to bottom, beside the part that is in sight. */
  function paintStrip(top) {
    strip.height = Math.max(1, box.clientHeight);
    const pen = strip.getContext("2d", { willReadFrequently: true });
    pen.clearRect(0, 0, strip.width, strip.height);
    const px = strip.height / laid.height;
    const rows = new Map();
    for (const [node, { y }] of at) {
      const row = Math.floor((y - laid.top) * px);
      rows.set(row, Math.max(rows.get(row) ?? 0, run.ops[node][amount.key] ?? 0));
    }
    for (const [row, value] of rows) {
      pen.fillStyle = heat(part(value, top)).fill;
      pen.fillRect(0, row, strip.width, Math.max(1, Math.ceil(NODE.height * px)));
    }
    whole = pen.getImageData(0, 0, strip.width, strip.height);
  }

  function markStrip() {
    if (!whole) return;
    const pen = strip.getContext("2d", { willReadFrequently: true });
    pen.putImageData(whole, 0, 0);
    const px = strip.height / laid.height;
    pen.strokeStyle = getComputedStyle(box).color;
    pen.lineWidth = 2;
    pen.strokeRect(1, (-view.y / view.scale - laid.top) * px, strip.width - 2, Math.max(4, (box.clientHeight / view.scale) * px));
  }

  function jump(event) {
    if (!laid) return;
    const y = laid.top + (event.offsetY / strip.clientHeight) * laid.height;
    view = { ...view, y: box.clientHeight / 2 - y * view.scale };
    draw();
  }

  return { element, select };
}

const button = (text, label, onclick) => el("button", { type: "button", "aria-label": label, title: label, onclick }, text);

/** From producer to consumer, by the values between them. */
function edgesOf(run) {
  const makers = new Map(run.ops.flatMap((op, node) => op.outputs.map((value) => [value, node])));
  return run.ops.flatMap((op, node) =>
    [...new Set(op.inputs.map((value) => makers.get(value)))]
      .filter((from) => from !== undefined && from < node)
      .map((from) => [from, node]),
  );
}

/** A curve through points, from above each to below the one before. */
function path(points) {
  const [first, ...rest] = points;
  let d = `M${first[0]} ${first[1]}`;
  rest.forEach(([x, y], at) => {
    const [px, py] = points[at];
    const bend = (y - py) / 2;
    d += `C${px} ${py + bend} ${x} ${y - bend} ${x} ${y}`;
  });
  return d;
}
