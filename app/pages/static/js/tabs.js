// Tabs as WAI-ARIA has them: arrow keys move, the panel is made when it is first opened.

import { el } from "./dom.js";

/**
 * tabs("Views", [{id, title, panel}], "table", (id) => …) → {element, select(id)}. panel() returns the node to show; what it needs
 * can come later, the node is kept. onSelect hears what the reader opens, not what `select` does.
 */
export function tabs(label, items, selected, onSelect = () => {}) {
  const made = new Map();
  const buttons = items.map((item) =>
    el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${item.id}`,
        "aria-controls": `panel-${item.id}`,
        onclick: () => choose(item.id),
      },
      item.title,
    ),
  );
  const panels = items.map((item) =>
    el("div", { role: "tabpanel", id: `panel-${item.id}`, "aria-labelledby": `tab-${item.id}`, tabindex: "0", hidden: true }),
  );
  const list = el("div", { role: "tablist", "aria-label": label, class: "tabs", onkeydown: move }, buttons);
  const element = el("div", {}, list, panels);

  function select(id) {
    const at = Math.max(
      0,
      items.findIndex((item) => item.id === id),
    );
    items.forEach((item, index) => {
      const open = index === at;
      buttons[index].setAttribute("aria-selected", String(open));
      buttons[index].tabIndex = open ? 0 : -1;
      panels[index].hidden = !open;
    });
    list.scrollLeft = buttons[at].offsetLeft - (list.clientWidth - buttons[at].clientWidth) / 2; // on small screens not all fit
    const item = items[at];
    if (!made.has(item.id)) {
      made.set(item.id, item.panel());
      panels[at].append(made.get(item.id));
    }
  }

  function choose(id) {
    select(id);
    onSelect(id);
  }

  function move(event) {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = (to + buttons.length) % buttons.length;
    choose(items[next].id);
    buttons[next].focus();
  }

  select(selected);
  return { element, select };
}
