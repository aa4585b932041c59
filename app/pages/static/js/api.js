// The service's JSON API, with errors as text for people.

/** An error of the service. status: the HTTP status, 0 where no answer came. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

/** The scopes of the key that this page was opened with, such as "admin". */
export const scopes = () => new Set(meta("scopes").split(" ").filter(Boolean));

/** Path and query; parameters that are null or "" are left out. */
export function address(path, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value != null && value !== ""));
  return query.size ? `${path}?${query}` : path;
}

export const get = (path, params, signal) => request(address(path, params), { signal });

export const post = (path, body, signal) =>
  request(path, {
    method: "POST",
    signal,
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...written() },
  });

/** Headers that a write must have: they show the service that it comes from this page. */
export const written = () => (meta("form-token") ? { "X-CSRF-Token": meta("form-token") } : {});

/** The items of a list, read page by page, at most `most`. */
export async function list(path, params = {}, most = 1000) {
  const items = [];
  let cursor = null;
  do {
    const page = await get(path, { limit: Math.min(200, most - items.length), ...params, cursor });
    items.push(...page.items);
    cursor = page.next;
  } while (cursor && items.length < most);
  return items;
}

/**
 * Follow server-sent events: onEvent(name, data) for "progress" and "end", with "lost" (a Problem as data) when the stream is
 * refused. A connection that breaks is taken up again where it was. Returns a function that stops.
 */
export function events(path, onEvent) {
  const source = new EventSource(path);
  source.addEventListener("progress", (event) => onEvent("progress", JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    onEvent("end", JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) onEvent("lost", new Problem(0, `${path}: the service sends no more events`));
  });
  return () => source.close();
}

/** The body of a reply as JSON. Throws Problem. */
export async function request(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, {
      credentials: "same-origin",
      ...options,
      headers: { Accept: "application/json", ...options.headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is it still running?");
  }
  if (reply.ok) return reply.status === 204 ? null : reply.json();
  const text = await reply.text();
  throw new Problem(reply.status, said(text) || `${path}: the service answered ${reply.status}`);
}

function said(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return "";
  }
}
