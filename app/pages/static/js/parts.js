// What the pages of plans, runs, devices and jobs have in common: parts that load, names of things, and what a key may do.

import { get, list, scopes } from "./api.js";
import { el, embedded, failure, fill } from "./dom.js";
import * as format from "./format.js";
import { onChange, read, write } from "./state.js";

/** Fill the element with this id with what make() returns. Where that fails, show why, under `title`. */
export async function part(id, title, make) {
  const place = document.getElementById(id);
  place.setAttribute("aria-busy", "true");
  try {
    fill(place, await make(place));
  } catch (error) {
    fill(place, failure(title, error));
    if (error.status === undefined) throw error; // a fault of the page, for the console
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** Why this page's key may not do what needs the scope, as text; "" where it may. */
export function lacks(scope) {
  const held = scopes();
  if (held.has(scope) || held.has("admin")) return "";
  return `This needs an API key with scope ${scope}; yours has ${[...held].join(" and ") || "none"}.`;
}

/** A button that posts. Where the key lacks the scope it is disabled and described by the reason. Returns [button, reason or null]. */
export function action(text, scope, attrs = {}) {
  const reason = lacks(scope);
  if (!reason) return [el("button", { type: "submit", class: "primary", ...attrs }, text), null];
  const id = `lacks-${++notes}`;
  return [
    el("button", { type: "submit", ...attrs, disabled: true, "aria-describedby": id }, text),
    el("p", { class: "quiet", id }, reason),
  ];
}
let notes = 0;

/** A labelled control: field("Runs", el("input", …), "1 to 10,000"). */
export function field(label, control, hint = null) {
  control.id ||= `field-${++fields}`;
  const about = hint ? el("small", { id: `${control.id}-hint` }, hint) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, about);
}
let fields = 0;

/** A select of [value, text] pairs. */
export const choice = (pairs, selected, attrs = {}) =>
  el(
    "select",
    attrs,
    pairs.map(([value, text]) => el("option", { value, selected: value === selected }, text)),
  );

/** A definition list of [name, text or node] pairs; those without a value are left out. */
export const facts = (pairs) =>
  el(
    "dl",
    { class: "particulars" },
    pairs
      .filter(([, value]) => value != null && value !== "")
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );

/** A plain table: titles as text, or {text, n: true} for figures; cells are text or nodes. */
export function plain(label, titles, rows) {
  const heads = titles.map((title) => (typeof title === "string" ? { text: title } : title));
  const cell = (content, at) => el("td", { class: heads[at].n ? "n" : null }, content ?? "–");
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map((head) => el("th", { scope: "col", class: head.n ? "n" : null }, head.text)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell))),
      ),
    ),
  );
}

export const planLink = (id, text = id.slice(0, 12)) => el("a", { href: `/plans/${id}` }, text);
export const deviceLink = (fingerprint, text = fingerprint) => el("a", { href: `/devices/${fingerprint}` }, text);
export const modelLink = (name, text = name) => el("a", { href: `/models/${encodeURIComponent(name)}` }, text);

/** Digest → served model, of those that are served now; the first of several with one file. */
export async function modelsByDigest() {
  const { models } = await get("/v1/models");
  return new Map(
    models
      .filter((model) => model.digest)
      .toReversed()
      .map((model) => [model.digest, model]),
  );
}

/** Fingerprint → name of the devices that are known. */
export async function deviceNames() {
  return new Map((await list("/v1/devices")).map((device) => [device.fingerprint, device.name]));
}

const STATES = {
  current: ["current", "good"],
  predicted: ["predicted, for another machine", ""],
  stale: ["stale", "bad"],
  drifted: ["drifted", "warn"],
  queued: ["waiting", ""],
  running: ["running", "warn"],
  done: ["done", "good"],
  failed: ["failed", "bad"],
  cancelled: ["cancelled", ""],
};

/** The word for the state of a plan or a job. */
export const stateWord = (state) => STATES[state]?.[0] ?? state;

/** The state of a plan or a job as a badge. */
export const stateBadge = (state) => el("span", { class: `state ${STATES[state]?.[1] ?? ""}` }, stateWord(state));

/** The progress of a job, as one line. */
export function progressText({ state, error, progress, result }) {
  if (state === "failed") return error;
  if (progress.budget_s != null)
    return `${progress.spent_s.toFixed(0)} of ${progress.budget_s} s, ${progress.measured} measured, best ${format.duration(progress.best_ns)}`;
  if (progress.total != null) return `${progress.done} of ${progress.total}: ${progress.phase}`;
  if (progress.phase && state === "running") return progress.runs ? `${progress.phase}, ${progress.runs} runs` : progress.phase;
  if (result.wall_p50_ns != null) return `median ${format.duration(result.wall_p50_ns)}`;
  return result.macs == null ? "" : format.macs(result.macs);
}

/** A select of the served models in #choice, kept in the URL as `model`; the first one where the URL has none. */
export function modelChoice(onChoice) {
  const names = embedded("models");
  if (!names.length) return null;
  if (!names.includes(read().model)) write({ model: names[0] });
  const select = choice(
    names.map((name) => [name, name]),
    read().model,
    { onchange: () => write({ model: select.value }, { step: true }) },
  );
  let shown = read().model;
  onChange(({ model = names[0] }) => {
    if (model === shown) return;
    select.value = shown = model;
    onChoice();
  });
  fill(document.getElementById("choice"), el("form", { class: "form row" }, field("Model", select)));
  return select;
}
