// Where the nodes of a graph go: dagre lays out piece after piece, so that thousands of nodes neither block the page nor grow
// quadratically. A model is cut at the nodes that all later ones depend on; pieces of the same shape, such as the
// blocks of a residual network, are laid out once. Edges that span many nodes take a lane of their own beside the rest.

import { Graph, layout } from "../vendor/dagre.esm.js";

export const NODE = { width: 176, height: 42 };
const GAP = 34; // between ranks
const LONG = 40; // nodes passed over: such an edge takes a lane
const MOST = 24; // nodes of a piece
const REST_MS = 24; // of work, before the page gets its turn

/**
 * Place nodes 0 … count-1, given in an order in which every edge [from, to] points onwards. Returns {pieces, lanes, left, top, width,
 * height}: pieces of {nodes: [{node, x, y}], edges: [[[x, y], …], …], top, bottom}, centres of nodes and points of edges; lanes: edges
 * beside them. Yields to the page between pieces; signal stops it.
 */
export async function place(count, edges, signal) {
  const order = late(count, edges);
  const rank = new Map(order.map((node, at) => [node, at]));
  const ordered = edges.map(([from, to]) => [rank.get(from), rank.get(to)]);
  const short = ordered.filter(([from, to]) => to - from <= LONG);
  const lanes = ordered.filter(([from, to]) => to - from > LONG);
  const cuts = cutAt(count, short);
  const within = cuts.slice(1).map(() => []);
  for (const [from, to] of short) {
    const piece = upper(cuts, from) - 1;
    if (to <= cuts[piece + 1]) within[piece].push([from - cuts[piece], to - cuts[piece]]);
    else lanes.push([from, to]);
  }
  const known = new Map();
  const at = [{ node: order[0], x: 0, y: 0 }];
  const pieces = count === 1 ? [{ nodes: [at[0]], edges: [], top: 0, bottom: 0, alone: true }] : [];
  let rested = performance.now();
  for (let piece = 0; piece < within.length; piece++) {
    const [first, size] = [cuts[piece], cuts[piece + 1] - cuts[piece] + 1];
    const key = `${size} ${within[piece].join(" ")}`;
    if (!known.has(key)) known.set(key, arrange(size, within[piece]));
    pieces.push(hang(known.get(key), first, order, within[piece], at, pieces.at(-1)));
    if (performance.now() - rested > REST_MS) {
      await new Promise((go) => setTimeout(go));
      signal?.throwIfAborted();
      rested = performance.now();
    }
  }
  return bounded(
    pieces,
    lanes.map(([from, to]) => [at[from], at[to]]),
  );
}

/** The order with every node that takes nothing right before the first that takes from it. */
function late(count, edges) {
  const takes = Array.from({ length: count }, () => []);
  const given = new Set();
  for (const [from, to] of edges) {
    takes[to].push(from);
    given.add(from);
  }
  const order = new Set();
  for (let node = 0; node < count; node++) {
    if (!takes[node].length && given.has(node)) continue;
    for (const from of takes[node]) order.add(from);
    order.add(node);
  }
  return [...order];
}

/** The nodes at which the order is cut, with the first and the last: no short edge passes over one, or as few as can be. */
function cutAt(count, edges) {
  const over = new Int32Array(count + 1); // edges that pass over a node
  for (const [from, to] of edges) {
    over[from + 1] += 1;
    over[to] -= 1;
  }
  for (let node = 1; node <= count; node++) over[node] += over[node - 1];
  const cuts = [0];
  for (let node = 1; node < count; node++) {
    const last = cuts.at(-1);
    if (over[node] === 0 || node === count - 1) {
      cuts.push(node);
    } else if (node - last >= MOST) {
      const span = Array.from({ length: MOST / 2 }, (_, step) => node - step);
      cuts.push(span.reduce((best, one) => (over[one] < over[best] ? one : best)));
    }
  }
  return [...new Set(cuts)].sort((a, b) => a - b);
}

/** How many of the ascending numbers are at most `value`; the last one closes the range before it. */
function upper(numbers, value) {
  let [low, high] = [0, numbers.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** dagre's layout of one piece: centres of nodes relative to the first, and points of edges. */
function arrange(count, edges) {
  const graph = new Graph();
  graph.setGraph({ nodesep: 22, edgesep: 14, ranksep: GAP });
  graph.setDefaultEdgeLabel(() => ({}));
  for (let node = 0; node < count; node++) graph.setNode(String(node), { ...NODE });
  for (const [from, to] of edges) graph.setEdge(String(from), String(to));
  layout(graph);
  const origin = graph.node("0");
  const shifted = ({ x, y }) => [x - origin.x, y - origin.y];
  return {
    nodes: Array.from({ length: count }, (_, node) => shifted(graph.node(String(node)))),
    edges: edges.map(([from, to]) => graph.edge(String(from), String(to)).points.map(shifted)),
  };
}

/** A laid out piece, hung on its first node, which is the last of the piece before where there is one. */
function hang(laid, first, order, local, at, before) {
  const anchor = at[first];
  const others = laid.nodes.slice(1);
  const beside = others.some(([, y]) => y < NODE.height);
  const fits = !before || (others.every(([, y]) => y > -1) && anchor.y >= before.bottom && (before.alone || !beside));
  const dy = fits ? anchor.y : before.bottom + NODE.height + GAP - Math.min(...others.map(([, y]) => y)); // else it would lie over what is there
  const nodes = others.map(
    ([x, y], index) => (at[first + 1 + index] = { node: order[first + 1 + index], x: x + anchor.x, y: y + dy }),
  );
  const edges = laid.edges.map((points, edge) => {
    const moved = points.map(([x, y]) => [x + anchor.x, y + dy]);
    return local[edge][0] === 0 && !fits ? [[anchor.x, anchor.y + NODE.height / 2], moved.at(-1)] : moved;
  });
  const bottom = Math.max(anchor.y, ...nodes.map(({ y }) => y));
  const alone = nodes.filter(({ y }) => y > bottom - NODE.height).length === 1;
  return {
    nodes: before ? nodes : [anchor, ...nodes],
    edges,
    top: Math.min(anchor.y, ...nodes.map(({ y }) => y)),
    bottom,
    alone,
  };
}

function bounded(pieces, ends) {
  const all = pieces.flatMap((piece) => piece.nodes);
  const [left, right] = [
    Math.min(...all.map(({ x }) => x)) - NODE.width / 2,
    Math.max(...all.map(({ x }) => x)) + NODE.width / 2,
  ];
  const bottom = Math.max(...pieces.map((piece) => piece.bottom)) + NODE.height / 2;
  const top = Math.min(...pieces.map((piece) => piece.top)) - NODE.height / 2;
  const lanes = ends.map(([from, to], lane) => {
    const x = right + 16 + 8 * (lane % 12);
    const [out, into] = [from.y + NODE.height / 2, to.y - NODE.height / 2];
    return [
      [from.x, out],
      [x, out + GAP],
      [x, into - GAP],
      [to.x, into],
    ];
  });
  return { pieces, lanes, left, top, width: right - left + (lanes.length ? 120 : 0), height: bottom - top };
}
