// A table that stays quick with thousands of rows: an ARIA grid of which only the rows in sight are in the document.

import { el, fill } from "./dom.js";
import { shorten } from "./format.js";

const ROW_PX = 28; // as --row in style.css
const SPARE = 12; // rows beyond the edge, so that scrolling shows no blanks
const MOST_CH = 44; // of one column
let grids = 0;

/**
 * table(columns, rows, options) → {element, update(rows), show({sort, q, cols}), reveal(id)}.
 *
 * columns: {key, title, unit, format(value, row), numeric, hidden, value(row), part(row), about}. value: where row[key] is not it;
 * part: 0…1, drawn as a bar behind the figure; hidden: until the reader picks the column.
 * options: label (of the grid), id(row), href(row) (makes the first column a link), onOpen(row) (instead of following it),
 * sort ("-key" is descending, "" the order given), q (the search), cols (keys joined by commas, "" the usual ones), onState
 * ({sort, q, cols} when the reader changed them: write it to the URL), mark(row) (a class for the row), empty (text without
 * rows), noun ("op"), toolbar (false leaves search and picker out).
 */
export function table(columns, rows, options = {}) {
  const { label = "Table", noun = "row", id = (row) => row, toolbar = true, empty = `There are no ${noun}s.` } = options;
  const usual = columns.filter((column) => !column.hidden).map((column) => column.key);
  let state = { sort: options.sort ?? "", q: options.q ?? "", cols: options.cols ?? "" };
  let shown = [];
  let view = [];
  let active = { row: -1, column: 0 }; // row -1 is the header
  const live = new Map(); // index in view → element

  const header = el("div", { role: "row", class: "row head", "aria-rowindex": "1" });
  const body = el("div", { role: "rowgroup", class: "body" });
  const grid = el(
    "div",
    { role: "grid", "aria-label": label, class: "grid", id: `grid-${++grids}`, onkeydown: key, onfocusin: focused },
    el("div", { role: "rowgroup", class: "heading" }, header),
    body,
  );
  const box = el("div", { class: "grid-box", onscroll: () => requestAnimationFrame(render) }, grid);
  const nothing = el("p", { class: "quiet", hidden: true });
  const search = el("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": `Search ${noun}s`,
    "aria-controls": grid.id,
    oninput: searched,
  });
  const total = el("span", { class: "quiet total", role: "status" });
  const picker = el(
    "details",
    { class: "picker" },
    el("summary", {}, "Columns"),
    el("div", { role: "group", "aria-label": "Columns" }),
  );
  const element = el(
    "div",
    { class: "table" },
    toolbar ? el("div", { class: "toolbar" }, search, picker, total) : null,
    box,
    nothing,
  );
  new ResizeObserver(() => render()).observe(box);

  const valueOf = (column, row) => (column.value ? column.value(row) : row[column.key]);
  const textOf = (column, row) => {
    const value = valueOf(column, row);
    return column.format ? column.format(value, row) : value == null ? "–" : String(value);
  };

  function arrange() {
    const keys = state.cols ? state.cols.split(",") : usual;
    shown = columns.filter((column) => keys.includes(column.key));
    if (!shown.length) shown = columns.filter((column) => usual.includes(column.key));
    const terms = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const words = columns.filter((column) => !column.numeric);
    view = rows.filter((row) => {
      const text = words
        .map((column) => textOf(column, row))
        .join(" ")
        .toLowerCase();
      return terms.every((term) => text.includes(term));
    });
    const by = columns.find((column) => column.key === state.sort.replace(/^-/, ""));
    if (by) view = sorted(view, (row) => valueOf(by, row), state.sort.startsWith("-"));
    active = { row: Math.min(active.row, view.length - 1), column: Math.min(active.column, shown.length - 1) };
    if (search.value !== state.q) search.value = state.q;
    pick();
    draw();
  }

  function pick() {
    fill(
      picker.lastElementChild,
      columns.map((column) => {
        const input = el("input", { type: "checkbox", value: column.key, checked: shown.includes(column), onchange: picked });
        return el("label", {}, input, ` ${column.title}`);
      }),
    );
  }

  function draw() {
    grid.setAttribute("aria-rowcount", String(view.length + 1));
    grid.setAttribute("aria-colcount", String(shown.length));
    grid.style.setProperty("--columns", shown.map(width).join(" "));
    fill(header, shown.map(heading));
    total.textContent =
      view.length === rows.length
        ? `${rows.length} ${noun}${rows.length === 1 ? "" : "s"}`
        : `${view.length} of ${rows.length} ${noun}s`;
    nothing.hidden = view.length > 0;
    nothing.textContent = rows.length ? `No ${noun} matches “${state.q}”.` : empty;
    body.style.setProperty("height", `${view.length * ROW_PX}px`);
    live.clear();
    body.replaceChildren();
    render();
  }

  function width(column) {
    const longest = rows.reduce((most, row) => Math.max(most, textOf(column, row).length), title(column).length + 2);
    const least = `${Math.min(longest, MOST_CH) + 2}ch`;
    return column.numeric ? least : `minmax(${least}, auto)`;
  }

  const title = (column) => (column.unit ? `${column.title}, ${column.unit}` : column.title);

  function heading(column, at) {
    const down = state.sort === `-${column.key}`;
    const up = state.sort === column.key;
    const arrow = el("span", { class: "arrow", "aria-hidden": "true" }, down ? "▼" : up ? "▲" : "");
    const button = el(
      "button",
      { type: "button", title: column.about ?? title(column), tabindex: "-1", onclick: () => sort(column) },
      title(column),
      arrow,
    );
    return el(
      "div",
      {
        role: "columnheader",
        "aria-colindex": String(at + 1),
        "aria-sort": down ? "descending" : up ? "ascending" : "none",
        class: column.numeric ? "cell n" : "cell",
      },
      button,
    );
  }

  function render() {
    const top = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - SPARE);
    const end = Math.min(view.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW_PX) + SPARE);
    const wanted = new Set(Array.from({ length: Math.max(0, end - top) }, (_, at) => top + at));
    if (active.row >= 0 && view.length) wanted.add(active.row); // the focused row stays, also out of sight
    for (const [at, row] of live) {
      if (wanted.has(at)) continue;
      row.remove();
      live.delete(at);
    }
    for (const at of [...wanted].sort((a, b) => a - b)) if (!live.has(at)) place(at);
    for (const cell of grid.querySelectorAll('[tabindex="0"]')) cell.tabIndex = -1;
    const cell = target(active);
    if (cell) cell.tabIndex = 0;
  }

  function place(at) {
    const row = line(view[at], at);
    live.set(at, row);
    const next = [...body.children].find((other) => Number(other.dataset.at) > at); // in reading order
    body.insertBefore(row, next ?? null);
  }

  function line(row, at) {
    const open = options.onOpen;
    const cells = shown.map((column, index) => {
      const text = textOf(column, row);
      const brief = shorten(text, MOST_CH);
      const content =
        index === 0 && options.href ? el("a", { href: options.href(row), tabindex: "-1", onclick: follow }, brief) : brief;
      const part = column.part?.(row);
      return el(
        "div",
        {
          role: "gridcell",
          "aria-colindex": String(index + 1),
          class: column.numeric ? "cell n" : "cell",
          tabindex: content === brief ? "-1" : null,
          title: brief === text ? null : text,
          style: part == null ? {} : { "--part": `${Math.min(100, Math.max(0, 100 * part))}%` },
        },
        content,
      );
    });
    function follow(event) {
      if (!open || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
    }
    return el(
      "div",
      {
        role: "row",
        class: `row ${open ? "opens" : ""} ${options.mark?.(row) ?? ""}`,
        "aria-rowindex": String(at + 2),
        "data-at": String(at),
        style: { top: `${at * ROW_PX}px` },
        onclick: open
          ? (event) => {
              if (!event.ctrlKey && !event.metaKey) open(row);
            }
          : null,
      },
      cells,
    );
  }

  /** What takes the focus in a cell: its button or link, else the cell. */
  function target({ row, column }) {
    const cell = (row < 0 ? header : live.get(row))?.children[column];
    return cell && (cell.querySelector("a, button") ?? cell);
  }

  function focused(event) {
    const cell = event.target.closest(".cell");
    const row = cell?.parentElement;
    if (!row) return;
    const next = { row: row === header ? -1 : Number(row.dataset.at), column: [...row.children].indexOf(cell) };
    if (next.row === active.row && next.column === active.column) return;
    active = next;
    render();
  }

  function key(event) {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW_PX) - 2);
    const { row, column } = active;
    const last = view.length - 1;
    const to = {
      ArrowDown: [row + 1, column],
      ArrowUp: [row - 1, column],
      ArrowRight: [row, column + 1],
      ArrowLeft: [row, column - 1],
      PageDown: [row + page, column],
      PageUp: [Math.max(row - page, Math.min(row, 0)), column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? last : row, shown.length - 1],
    }[event.key];
    if (to) {
      event.preventDefault();
      active = { row: Math.min(last, Math.max(-1, to[0])), column: Math.min(shown.length - 1, Math.max(0, to[1])) };
      seek();
    } else if (event.key === "Enter" && row >= 0 && options.onOpen && !event.target.closest("a, button")) {
      options.onOpen(view[row]);
    }
  }

  function seek() {
    if (active.row >= 0) {
      const top = active.row * ROW_PX;
      const height = box.clientHeight - 2 * ROW_PX;
      if (top < box.scrollTop) box.scrollTop = top;
      if (top > box.scrollTop + height) box.scrollTop = top - height;
    }
    render();
    const cell = target(active);
    cell?.focus({ preventScroll: true });
    cell?.closest(".cell").scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function sort(column) {
    const [first, second] = column.numeric ? [`-${column.key}`, column.key] : [column.key, `-${column.key}`];
    state.sort = state.sort === first ? second : state.sort === second ? "" : first;
    box.scrollTop = 0;
    active = { row: -1, column: shown.indexOf(column) };
    arrange();
    target(active)?.focus();
    said();
  }

  function searched() {
    state.q = search.value;
    box.scrollTop = 0;
    arrange();
    said();
  }

  function picked() {
    const keys = [...picker.querySelectorAll("input:checked")].map((input) => input.value);
    state.cols = keys.join() === usual.join() ? "" : keys.join();
    const focus = document.activeElement?.value;
    arrange();
    picker.querySelector(`input[value="${focus}"]`)?.focus();
    said();
  }

  const said = () => options.onState?.({ ...state });

  arrange();
  return {
    element,
    update(next) {
      rows = next;
      arrange();
    },
    show({ sort = "", q = "", cols = "" }) {
      if (sort === state.sort && q === state.q && cols === state.cols) return;
      state = { sort, q, cols };
      arrange();
    },
    /** Scroll a row into sight and focus it. */
    reveal(wanted) {
      const at = view.findIndex((row) => id(row) === wanted);
      if (at < 0) return;
      active = { row: at, column: 0 };
      seek();
    },
  };
}

/** By value, null last either way; equal ones stay in their order. */
function sorted(rows, value, descending) {
  const sign = descending ? -1 : 1;
  return rows.toSorted((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a == null || b == null) return Number(a == null) - Number(b == null);
    return sign * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  });
}
