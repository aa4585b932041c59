// Elements from data. Text is always text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. attrs: `onclick` and the like are listeners, `style` is an object of properties (set one by one, as the
 * content security policy asks), true stands for an attribute without value, null and false for none. Children: nodes or text.
 */
export const el = (tag, attrs = {}, ...children) => dress(document.createElement(tag), attrs, children);

/** An SVG element; arguments as of `el`. */
export const svg = (tag, attrs = {}, ...children) => dress(document.createElementNS(SVG, tag), attrs, children);

function dress(element, attrs, children) {
  for (const [name, value] of Object.entries(attrs ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Empty an element, and put children there instead. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export const clear = (element) => fill(element);

/** A message in place of what is missing. kind: "info" | "problem" | "good". */
export const notice = (kind, title, ...text) =>
  el(
    "div",
    { class: `notice ${kind}`, role: kind === "problem" ? "alert" : "status" },
    el("strong", {}, title),
    text.length ? el("p", {}, ...text) : null,
  );

/** What other work was seen to do to a measurement (`quietness` of a run or a device), and what follows; null where it was quiet. */
export function disturbed(quietness, consequence) {
  if (!quietness?.reasons.length) return null;
  const busy = quietness.level === "busy";
  const title = `The machine was ${quietness.level} with other work${busy ? `. ${consequence}.` : "; the fastest runs hold."}`;
  const box = notice(busy ? "problem" : "info", title, `${quietness.reasons.join("; ")}.`);
  box.id = "quietness";
  return box;
}

/** An entry of a legend: a dot in a colour (a custom property) before its meaning. kind: "ring" for a circle, "" for a disk. */
export const key = (colour, text, kind = "") => el("span", { class: `key ${kind}`, style: { "--key": `var(${colour})` } }, text);

/** A notice in place of a part that could not be loaded. */
export const failure = (title, error) => notice("problem", title, error.message);

/** A list of figures: [[name, text], …]. */
export const figures = (pairs) =>
  el(
    "dl",
    { class: "figures" },
    pairs.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))),
  );

/** Call f whenever the theme changes, for as long as the element is in the page. */
export function onTheme(element, f) {
  addEventListener("themechange", function heard() {
    if (element.isConnected) f();
    else removeEventListener("themechange", heard);
  });
}

/** The JSON that the server put into the page under an id. */
export const embedded = (id) => JSON.parse(document.getElementById(id).textContent);
