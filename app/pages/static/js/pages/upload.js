// Upload a model file to the service.

import { Problem, address, written } from "../api.js";
import { el, failure, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { action, field } from "../parts.js";

const place = document.getElementById("upload");
const limit = Number(place.dataset.limit);
const file = el("input", { type: "file", accept: ".onnx", required: true, onchange: chosen });
const name = el("input", {
  type: "text",
  required: true,
  maxlength: "128",
  pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*",
  autocomplete: "off",
  spellcheck: "false",
});
const replace = el("input", { type: "checkbox", id: "replace" });
const [send, reason] = action("Upload and serve", "admin");
const stop = el("button", { type: "button", hidden: true }, "Cancel");
const said = el("div", { "aria-live": "polite", id: "upload-result" });
const form = el(
  "form",
  { class: "form", onsubmit: upload },
  field("Model file", file),
  field("Name", name, "Letters, digits, dots, dashes and underscores; clients use it to request the model"),
  el("label", { for: "replace" }, replace, "Replace the model of that name, if there is one"),
  el("div", { class: "buttons" }, send, stop, reason),
);
if (place.dataset.refused) for (const control of [file, name, replace, send]) control.disabled = true;
fill(place, form, said);

function chosen() {
  const [found] = file.files;
  if (found && !name.value)
    name.value = found.name
      .replace(/\.onnx$/i, "")
      .replace(/[^A-Za-z0-9._-]+/g, "-")
      .replace(/^[^A-Za-z0-9]+/, "");
  file.setCustomValidity(
    found && found.size > limit ? `The file has ${format.bytes(found.size)}, the limit is ${format.bytes(limit)}.` : "",
  );
  file.reportValidity();
}

async function upload(event) {
  event.preventDefault();
  const [found] = file.files;
  const bar = el("progress", { max: "1", value: "0", "aria-label": "Sent" });
  const line = el("p", { class: "quiet" }, "Sending…");
  const control = new AbortController();
  stop.onclick = () => control.abort();
  send.disabled = true;
  stop.hidden = false;
  fill(said, el("div", { class: "result" }, bar, line));
  try {
    const model = await put(
      address("/v1/models", { name: name.value, replace: replace.checked }),
      found,
      control.signal,
      (sent) => {
        bar.value = sent / found.size;
        line.textContent =
          sent < found.size ? `Sent ${format.bytes(sent)} of ${format.bytes(found.size)}` : "Sent. The service is loading it…";
      },
    );
    const link = (path, text) => el("a", { class: "button", href: `/models/${encodeURIComponent(model.name)}${path}` }, text);
    fill(
      said,
      notice(
        "good",
        `${model.name} is served`,
        model.inputs
          .map((input) => `${input.name}: ${input.dtype}[${(input.shape ?? ["?"]).map((dim) => dim ?? "?").join(", ")}]`)
          .join(", "),
      ),
      el("p", { class: "form row" }, link("", "Open the model"), link("/work", "Work on it")),
    );
    form.reset();
  } catch (error) {
    fill(
      said,
      error.name === "AbortError"
        ? notice("info", "Cancelled", "Nothing was kept.")
        : failure("The model was not accepted", error),
    );
  } finally {
    send.disabled = false;
    stop.hidden = true;
  }
}

/** POST a file. XMLHttpRequest, because `fetch` does not report how much was sent. */
function put(path, body, signal, onSent) {
  return new Promise((done, fail) => {
    const call = new XMLHttpRequest();
    call.open("POST", path);
    call.responseType = "json";
    for (const [header, value] of Object.entries({
      Accept: "application/json",
      "Content-Type": "application/octet-stream",
      ...written(),
    }))
      call.setRequestHeader(header, value);
    call.upload.onprogress = (event) => onSent(event.loaded);
    call.onload = () =>
      call.status === 200
        ? done(call.response)
        : fail(new Problem(call.status, call.response?.error ?? `The service answered ${call.status}.`));
    call.onerror = () =>
      fail(new Problem(0, "The connection was closed. The service may have refused the file, or is no longer running."));
    call.onabort = () => fail(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => call.abort());
    call.send(body);
  });
}
