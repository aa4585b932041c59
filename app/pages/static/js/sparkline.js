// The last few minutes of one figure as a small line. The figure itself stands beside it, so the line is hidden from screen readers.

import { svg } from "./dom.js";

const [WIDTH, HEIGHT] = [160, 36];

/** sparkline("Latency") → {element, update(values)}; null is a gap, the lower edge is 0, the upper the largest value. */
export function sparkline(label) {
  const line = svg("path", { class: "spark-line" });
  const element = svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
      "data-label": label,
    },
    line,
  );
  return {
    element,
    update(values) {
      const largest = Math.max(...values.filter((value) => value != null), Number.MIN_VALUE);
      const step = WIDTH / Math.max(1, values.length - 1);
      let d = "";
      values.forEach((value, at) => {
        if (value == null) return;
        const pen = at && values[at - 1] != null ? "L" : "M";
        d += `${pen}${(at * step).toFixed(1)} ${(HEIGHT - 2 - ((HEIGHT - 4) * value) / largest).toFixed(1)}`;
        if (pen === "M") d += "h0.1"; // a dot, where its neighbours are gaps
      });
      line.setAttribute("d", d);
    },
  };
}
