// What a page shows is in its URL, so that links to it can be shared and reloading changes nothing.

const heard = new Set();

/** The URL's query as an object of strings. */
export const read = () => Object.fromEntries(new URLSearchParams(location.search));

/**
 * Change parts of the query; null and "" remove one. step: add an entry to the browser's history, for changes that feel like going
 * somewhere; without it the present entry is replaced.
 */
export function write(changes, { step = false } = {}) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value == null || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  if (text === location.search.slice(1)) return;
  const url = text ? `?${text}` : location.pathname;
  if (step) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
  tell();
}

/** Call f(read()) whenever the query has changed, by `write` or by Back and Forward. Returns a function that stops it. */
export function onChange(f) {
  heard.add(f);
  return () => heard.delete(f);
}

function tell() {
  for (const f of heard) f(read());
}

addEventListener("popstate", tell);
