// Horizontal bars: a list, so that it reads as one without the picture.

import { el } from "./dom.js";

/**
 * bars("Time by op type", [{name, value, text, note, href, colour}]) → a node. The longest bar is the largest value. text: the
 * value as people read it; note: what else there is to say; colour: a CSS colour.
 */
export function bars(label, items) {
  const largest = Math.max(0, ...items.map((item) => item.value ?? 0));
  return el(
    "ul",
    { class: "bars", "aria-label": label },
    items.map((item) => {
      const width = largest > 0 ? (100 * (item.value ?? 0)) / largest : 0;
      return el(
        "li",
        {},
        item.href
          ? el("a", { class: "name", href: item.href, title: item.name }, item.name)
          : el("span", { class: "name", title: item.name }, item.name),
        el(
          "span",
          { class: "track", "aria-hidden": "true" },
          el("span", { class: "bar", style: { width: `${width}%`, background: item.colour ?? "" } }),
        ),
        el("span", { class: "value" }, item.text),
        item.note ? el("span", { class: "note" }, item.note) : null,
      );
    }),
  );
}
