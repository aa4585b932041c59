// Colours for amounts: viridis, which colour-blind people can read too; larger amounts contrast more with the background.

const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

const dark = () =>
  (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

/** The colour of 0…1: from that of the ground's side to the other, and black or white, which can be read on it. */
export function heat(part) {
  const at = (dark() ? part : 1 - part) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const rgb = VIRIDIS[low].map((value, channel) => Math.round(value + (VIRIDIS[low + 1][channel] - value) * (at - low)));
  const [r, g, b] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return { fill: `rgb(${rgb.join()})`, text: light > 0.179 ? "#000" : "#fff" }; // the better contrast of the two
}

/** 0…1 of an amount among amounts up to `most`; the root, so that small ones differ too. */
export const part = (value, most) => (value > 0 && most > 0 ? Math.sqrt(Math.min(1, value / most)) : 0);

/** The scale as CSS, from little to much. */
export const gradient = () => `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((at) => heat(at).fill).join(", ")})`;
