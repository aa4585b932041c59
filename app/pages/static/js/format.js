// Numbers with units, written so that people can read them. `quantity` is profiler/units.py's too; a test compares the two.

const STEPS = [
  ["T", 1e12],
  ["G", 1e9],
  ["M", 1e6],
  ["k", 1e3],
];
const UNKNOWN = "–";

/** 300774272, "MACs" → "300.8 MMACs". Null is unknown, "–". */
export function quantity(value, unit) {
  if (value == null) return UNKNOWN;
  const step = STEPS.find(([, scale]) => Math.abs(value) >= scale);
  return step ? `${(value / step[1]).toFixed(1)} ${step[0]}${unit}` : `${value.toFixed(0)} ${unit}`.trimEnd();
}

/** A whole number, all digits: 300774272 → "300,774,272". */
export const count = (value) => (value == null ? UNKNOWN : Math.round(value).toLocaleString("en-GB"));

export const macs = (value) => quantity(value, "MACs");
export const flops = (value) => quantity(value, "FLOPs");
export const bytes = (value) => quantity(value, "B");

/** An amount per second; `unit` is of the amount. */
export const rate = (value, unit = "FLOP") => quantity(value, `${unit}/s`);

/** Nanoseconds: 1234567 → "1.23 ms". */
export function duration(ns) {
  if (ns == null) return UNKNOWN;
  const size = Math.abs(ns);
  if (size < 1e3) return `${ns.toFixed(0)} ns`;
  if (size < 1e6) return `${digits(ns / 1e3)} µs`;
  if (size < 1e9) return `${digits(ns / 1e6)} ms`;
  return `${digits(ns / 1e9)} s`;
}

/** 12.345 → "12.3 %". */
export const percent = (value) => (value == null ? UNKNOWN : `${value.toFixed(Math.abs(value) < 10 ? 2 : 1)} %`);

/** How many times: 1.234 → "1.23 ×". */
export const ratio = (value) => (value == null ? UNKNOWN : `${digits(value)} ×`);

/** Microseconds since 1970, as local date and time. */
export function when(us) {
  if (us == null) return UNKNOWN;
  const at = new Date(us / 1e3);
  const two = (part) => String(part).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** Of any size, without a unit: 0.0125 → "0.013", 12.3 → "12.3", 1234567 → "1.2 M". */
export function number(value) {
  if (value == null) return UNKNOWN;
  if (Math.abs(value) >= 1e3) return quantity(value, "");
  return String(Number(value.toPrecision(Math.abs(value) < 1 ? 2 : 3)));
}

/** Text with its middle left out where it is longer than `most`: the ends of names tell them apart. */
export const shorten = (text, most) =>
  text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`;

/** Three significant digits. */
function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}
