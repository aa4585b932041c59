// One inference from the page: an image or JSON becomes an Open Inference Protocol request, and the reply is shown as classes or values.

import { request, written } from "./api.js";
import { bars } from "./bars.js";
import { el, failure, fill } from "./dom.js";
import * as format from "./format.js";
import { action, choice, field, planLink } from "./parts.js";

const DATATYPES = { float32: "FP32", float64: "FP64", float16: "FP16", bfloat16: "BF16", bool: "BOOL", object: "BYTES" };
const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array };
const SCALES = [
  ["unit", "0 … 1", [0, 0, 0], [1, 1, 1]],
  ["imagenet", "ImageNet mean and deviation", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]],
  ["signed", "−1 … 1", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],
  ["bytes", "0 … 255", [0, 0, 0], [1 / 255, 1 / 255, 1 / 255]],
];
const TOP_CLASSES = 5;
const MOST_VALUES = 100;
const MOST_TEMPLATE = 256; // elements of a request that is written out for the reader to change
const OPEN_PX = 224; // of an image whose size the model leaves open

/** A form that runs a model once. model: as /v1/models returns it. */
export function inferForm(model) {
  const image = imageInput(model);
  const ways = [
    image && { id: "image", title: "Image", part: image },
    { id: "json", title: "JSON", part: jsonInput(model) },
  ].filter(Boolean);
  const parts = ways.map(({ id, part }, at) => el("div", { class: "form", "data-way": id, hidden: at > 0 }, part.element));
  const radios = ways.map(({ id, title }, at) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name: "way",
        value: id,
        checked: at === 0,
        onchange: () =>
          parts.forEach((part) => {
            part.hidden = part.dataset.way !== id;
          }),
      }),
      title,
    ),
  );
  const [run, reason] = action("Run", "infer");
  const stop = el("button", { type: "button", hidden: true }, "Cancel");
  const result = el("div", { class: "result", "aria-live": "polite", id: "inference" });

  async function submit(event) {
    event.preventDefault();
    const way = ways[parts.findIndex((part) => !part.hidden)];
    const control = new AbortController();
    stop.onclick = () => control.abort();
    run.disabled = true;
    stop.hidden = false;
    fill(result, el("p", { class: "quiet" }, "Running…"));
    try {
      const { body, headers } = await way.part.ask();
      const began = performance.now();
      const reply = await request(`/v2/models/${encodeURIComponent(model.name)}/versions/${model.version}/infer`, {
        method: "POST",
        body,
        headers: { ...headers, ...written() },
        signal: control.signal,
      });
      fill(result, shown(reply, 1e6 * (performance.now() - began)));
    } catch (error) {
      fill(
        result,
        error.name === "AbortError" ? el("p", { class: "quiet" }, "Cancelled.") : failure("The inference failed", error),
      );
    } finally {
      run.disabled = false;
      stop.hidden = true;
    }
  }

  const form = el(
    "form",
    { class: "form", onsubmit: submit },
    ways.length > 1 ? el("fieldset", {}, el("legend", {}, "Input"), el("div", { class: "choices" }, radios)) : null,
    parts,
    el("div", { class: "buttons" }, run, stop, reason),
  );
  return el("div", { class: "infer" }, form, result);
}

/** The outputs to request: the largest classes of those that hold scores, all values of the others. */
const wanted = (model) =>
  model.outputs.map(({ name, dtype, shape }) =>
    dtype.startsWith("float") && shape && shape.length > 0 && shape.length < 3 && shape.at(-1) !== 1
      ? { name, parameters: { classification: TOP_CLASSES } }
      : { name },
  );

const datatype = (dtype) => DATATYPES[dtype] ?? dtype.toUpperCase();

/** How a model's only input holds an image; null where it holds none. */
function placeOf({ inputs }) {
  const [input] = inputs;
  if (inputs.length !== 1 || !input.shape || input.shape.length !== 4 || !ARRAYS[input.dtype]) return null;
  const [rows, ...dims] = input.shape;
  const first = [1, 3].includes(dims[0]);
  if (typeof rows === "number" && rows !== 1) return null;
  if (!first && ![1, 3].includes(dims[2])) return null;
  const [channels, height, width] = first ? dims : [dims[2], dims[0], dims[1]];
  return { input, first, channels, height, width };
}

function imageInput(model) {
  const place = placeOf(model);
  if (!place) return null;
  const { input, channels } = place;
  const file = el("input", { type: "file", accept: "image/*", onchange: () => draw().catch(() => {}) });
  const size = (value) =>
    el("input", {
      type: "number",
      min: "1",
      max: "4096",
      value: String(typeof value === "number" ? value : OPEN_PX),
      disabled: typeof value === "number",
      onchange: () => draw().catch(() => {}),
    });
  const [height, width] = [size(place.height), size(place.width)];
  const fit = choice(
    [
      ["crop", "crop to the centre"],
      ["stretch", "stretch"],
    ],
    "crop",
    { onchange: () => draw().catch(() => {}) },
  );
  const scale = choice(
    [...SCALES.map(([id, text]) => [id, text]), ["own", "own mean and deviation"]],
    input.dtype === "uint8" ? "bytes" : "unit",
    {
      onchange: () => {
        own.hidden = scale.value !== "own";
      },
    },
  );
  const mean = el("input", { type: "text", value: "0", inputmode: "decimal" });
  const deviation = el("input", { type: "text", value: "1", inputmode: "decimal" });
  const own = el(
    "div",
    { class: "two", hidden: true },
    field("Mean", mean, "One number, or one for each channel"),
    field("Deviation", deviation, "(pixel ÷ 255 − mean) ÷ deviation"),
  );
  const invert = el("input", { type: "checkbox", onchange: () => draw().catch(() => {}) });
  const canvas = el("canvas", { role: "img", "aria-label": "The image as the model gets it", hidden: true });

  async function draw() {
    const [found] = file.files;
    if (!found) throw new Error("choose an image file first");
    let picture;
    try {
      picture = await createImageBitmap(found);
    } catch {
      throw new Error(`${found.name} is not an image that this browser can read`);
    }
    [canvas.width, canvas.height] = [width.valueAsNumber, height.valueAsNumber];
    const ratio = fit.value === "crop" ? Math.min(picture.width / canvas.width, picture.height / canvas.height) : null;
    const [w, h] = ratio ? [canvas.width * ratio, canvas.height * ratio] : [picture.width, picture.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.filter = invert.checked ? "invert(1)" : "none";
    context.drawImage(picture, (picture.width - w) / 2, (picture.height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
    picture.close();
    canvas.hidden = false;
    return context.getImageData(0, 0, canvas.width, canvas.height);
  }

  function numbers(text) {
    const found = text
      .split(/[\s,;]+/)
      .filter(Boolean)
      .map(Number);
    if (![1, channels].includes(found.length) || !found.every(Number.isFinite))
      throw new Error(`mean and deviation: need one number, or ${channels}`);
    return Array.from({ length: channels }, (_, at) => found[at % found.length]);
  }

  async function ask() {
    const pixels = await draw();
    const [, , means, deviations] = SCALES.find(([id]) => id === scale.value) ?? [
      null,
      null,
      numbers(mean.value),
      numbers(deviation.value),
    ];
    const data = tensor(pixels, { ...place, means, deviations });
    const area = [pixels.height, pixels.width];
    const shape = place.first ? [1, channels, ...area] : [1, ...area, channels];
    const head = {
      inputs: [{ name: input.name, datatype: datatype(input.dtype), shape, parameters: { binary_data_size: data.byteLength } }],
      outputs: wanted(model),
    };
    const json = new TextEncoder().encode(JSON.stringify(head));
    return {
      body: new Blob([json, data]),
      headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(json.length) },
    };
  }

  const layout = `${input.name}: ${input.dtype}, ${channels === 1 ? "grey" : "RGB"}, channels ${place.first ? "first" : "last"}`;
  return {
    ask,
    element: [
      el("p", { class: "quiet" }, layout),
      field("Image file", file),
      el(
        "div",
        { class: "two" },
        field("Height, pixels", height),
        field("Width, pixels", width),
        field("Aspect ratio", fit),
        field("Values", scale),
      ),
      el("label", {}, invert, "Invert, for dark ink on light paper"),
      own,
      canvas,
    ],
  };
}

/** The pixels of an image as the model's tensor: RGB or grey, planes or interleaved, normalised. */
function tensor({ data, width, height }, { input, first, channels, means, deviations }) {
  const area = width * height;
  const made = new ARRAYS[input.dtype](area * channels);
  for (let at = 0; at < area; at++) {
    const [r, g, b] = [data[4 * at], data[4 * at + 1], data[4 * at + 2]];
    const values = channels === 1 ? [0.299 * r + 0.587 * g + 0.114 * b] : [r, g, b];
    values.forEach((value, channel) => {
      const scaled = (value / 255 - means[channel % means.length]) / deviations[channel % deviations.length];
      made[first ? channel * area + at : at * channels + channel] = input.dtype === "uint8" ? Math.round(scaled) : scaled;
    });
  }
  return made;
}

function jsonInput(model) {
  const text = el("textarea", { spellcheck: "false", rows: "10" });
  text.value = template(model);
  const file = el("input", {
    type: "file",
    accept: "application/json,.json",
    onchange: async () => {
      if (file.files[0]) text.value = await file.files[0].text();
    },
  });
  async function ask() {
    let asked;
    try {
      asked = JSON.parse(text.value);
    } catch (error) {
      throw new Error(`The request is not JSON: ${error.message}`, { cause: error });
    }
    return { body: JSON.stringify({ outputs: wanted(model), ...asked }), headers: { "Content-Type": "application/json" } };
  }
  return {
    ask,
    element: [
      field("Request", text, "An Open Inference Protocol request: the inputs, and optionally outputs and parameters"),
      field("or from a file", file),
    ],
  };
}

/** A request with zeros, where it is short enough to be changed by hand. */
function template({ inputs }) {
  const described = inputs.map(({ name, dtype, shape }) => {
    const sizes = (shape ?? []).map((dim) => (typeof dim === "number" ? dim : 1));
    const length = sizes.reduce((product, dim) => product * dim, 1);
    const zero = dtype === "object" ? "" : dtype === "bool" ? false : 0;
    return { name, datatype: datatype(dtype), shape: sizes, data: length <= MOST_TEMPLATE ? Array(length).fill(zero) : [] };
  });
  return `{"inputs": [\n${described.map((input) => `  ${JSON.stringify(input)}`).join(",\n")}\n]}`;
}

function shown(reply, trip_ns) {
  const { plan_id, batch_rows } = reply.parameters ?? {};
  const by = /^[0-9a-f]{64}$/.test(plan_id ?? "") ? ["with plan ", planLink(plan_id)] : ["with the default plan"];
  return [
    el(
      "p",
      {},
      el("strong", {}, format.duration(trip_ns)),
      " from this page and back, ",
      ...by,
      batch_rows > 1 ? `, ${batch_rows} rows in the run` : "",
    ),
    ...reply.outputs.flatMap((output) =>
      [
        el("h3", {}, `${output.name} `, el("small", { class: "quiet" }, `${output.datatype} [${output.shape.join(", ")}]`)),
        outputs(output),
      ].flat(),
    ),
  ];
}

function outputs({ name, datatype: kind, shape, data }) {
  const classes = kind === "BYTES" ? data.map((text) => /^(-?[\d.]+|nan|-?inf):(\d+)(?::(.*))?$/s.exec(text)) : [null];
  if (data.length && classes.every(Boolean)) {
    const each = shape.at(-1);
    return Array.from({ length: data.length / each }, (_, row) =>
      bars(
        data.length > each ? `${name}, row ${row}` : name,
        classes.slice(row * each, (row + 1) * each).map(([, value, index, label]) => ({
          name: label ?? `class ${index}`,
          value: Math.max(0, Number(value)),
          text: value,
          note: label == null || label === index ? null : `class ${index}`,
        })),
      ),
    );
  }
  const most = data
    .slice(0, MOST_VALUES)
    .map((value) => (typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(6) : String(value)))
    .join(", ");
  return el("p", {}, el("code", {}, most), data.length > MOST_VALUES ? ` … ${format.count(data.length)} values` : "");
}
