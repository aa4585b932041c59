// Sums by type of op, by what bounds the ops, by backend and by strategy.

import { bars } from "../bars.js";
import { el, fill } from "../dom.js";
import { percent } from "../format.js";
import { amounts, chooser } from "./figures.js";

const GROUPS = [
  ["op", "By type of op"],
  ["bound", "By what bounds them"],
  ["backend", "By backend"],
  ["strategy", "By strategy"],
];
const MOST = 20; // bars of a group

/** types(run, {by, onState}) → a node. by: the amount summed. */
export function types(run, { by, onState }) {
  const choices = amounts(run).filter((one) => one.key !== "live_bytes"); // a level, not an amount: its sum says nothing
  const groups = el("div", { class: "groups" });
  const show = (amount) =>
    fill(
      groups,
      GROUPS.filter(([key]) => run.ops.some((op) => op[key])).map(([key, title]) => group(run, key, title, amount)),
    );
  const chosen = choices.find((one) => one.key === by) ?? choices[0];
  show(chosen);
  return el(
    "div",
    {},
    el(
      "div",
      { class: "toolbar" },
      chooser("Sum of", choices, chosen, (amount) => {
        show(amount);
        onState({ by: amount.key });
      }),
    ),
    groups,
  );
}

function group(run, key, title, amount) {
  const sums = [...Map.groupBy(run.ops, (op) => op[key] || "none")].map(([name, ops]) => ({
    name,
    ops: ops.length,
    value: ops.reduce((sum, op) => sum + (op[amount.key] ?? 0), 0),
  }));
  const total = sums.reduce((sum, one) => sum + one.value, 0);
  sums.sort((one, other) => other.value - one.value);
  const rows = sums.slice(0, MOST).map((one) => ({
    name: `${one.name} (${one.ops})`,
    value: one.value,
    text: amount.format(one.value),
    note: percent(total ? (100 * one.value) / total : 0),
  }));
  const heading = `${title}: ${amount.title.toLowerCase()}, ${amount.unit}`;
  return el(
    "section",
    {},
    el("h2", {}, heading),
    bars(heading, rows),
    sums.length > MOST ? el("p", { class: "quiet" }, `The ${MOST} largest of ${sums.length}.`) : null,
  );
}
