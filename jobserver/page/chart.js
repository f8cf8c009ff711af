// Charts of a few hundred points: steps, lines and bars over one axis, drawn at the width that there is.

import { h, s } from "./dom.js";
import { number } from "./format.js";

const HEIGHT = 150;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;

const TIMES_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400];

/** Round values that cut `low`..`high` into about `count` parts; `steps` to choose from, else 1, 2 and 5 times ten to n. */
export function ticks(low, high, count, steps = []) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const round = [1, 2, 5, 10].map((factor) => factor * power);
  const step = steps.find((size) => size >= rough) ?? round.find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step + 0);
}

/** chart.update({points: [[x, y, title?]], kind: "steps" | "line" | "bars", x: {low, high, format}, y: {low}, live: [...]}) */
export function chart(title, unit) {
  const drawing = s("svg", { role: "img", height: HEIGHT });
  const value = h("span", { class: "value" });
  const node = h("figure", { class: "chart", "data-chart": title },
    h("figcaption", {}, title, unit ? h("span", { class: "unit" }, ` (${unit})`) : null, value), drawing);
  let shown = "";

  function update(spec) {
    const all = [...spec.points, ...(spec.live ?? [])];
    node.hidden = all.length === 0;
    if (node.hidden) return;
    const width = Math.max(200, drawing.clientWidth || node.clientWidth || 400);
    const key = `${width} ${JSON.stringify(spec.points)} ${JSON.stringify(spec.live ?? [])} ${spec.x.low} ${spec.x.high} ${spec.x.label}`;
    if (key === shown) return;
    shown = key;
    const values = all.map((point) => point[1]);
    const last = spec.last ?? values.at(-1);
    value.textContent = number(last);
    drawing.setAttribute("aria-label", `${title} over ${spec.x.label}: last ${number(last)}${unit ? ` ${unit}` : ""}, between ` +
      `${number(Math.min(...values))} and ${number(Math.max(...values))}`);
    drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    drawing.replaceChildren(...draw(spec, width, values));
  }
  return { node, update };
}

function draw(spec, width, values) {
  const low = spec.fromZero === false ? Math.min(...values) : Math.min(0, ...values);
  const high = Math.max(...values, low + 1e-9);
  const yTicks = ticks(low, high, 4);
  const top = Math.max(high, yTicks.at(-1) ?? high);
  const { low: xLow, high: xHigh } = spec.x;
  const right = width - RIGHT;
  const x = (at) => LEFT + ((at - xLow) / (xHigh - xLow || 1)) * (right - LEFT);
  const y = (at) => HEIGHT - BOTTOM - ((at - low) / (top - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const nodes = [];
  for (const at of yTicks) {
    nodes.push(s("line", { class: "grid", x1: LEFT, x2: right, y1: y(at), y2: y(at) }));
    nodes.push(s("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, number(at, 3)));
  }
  for (const at of ticks(xLow, xHigh, Math.max(2, Math.floor(width / 130)), spec.x.label === "time" ? TIMES_S : [])) {
    nodes.push(s("text", { x: x(at), y: HEIGHT - 6, "text-anchor": at === xLow ? "start" : "middle" }, spec.x.format(at)));
  }
  nodes.push(...DRAW[spec.kind](spec.points, x, y, spec.x.high));
  if (spec.live?.length) nodes.push(s("path", { class: "live", d: path(spec.live, x, y) }));
  return nodes;
}

const place = (value) => value.toFixed(1);
const path = (points, x, y) => points.map(([at, value], i) => `${i ? "L" : "M"}${place(x(at))} ${place(y(value))}`).join("");

const DRAW = {
  steps(points, x, y, end) {
    let d = "";
    points.forEach(([at, value], i) => {
      d += i ? `H${place(x(at))}V${place(y(value))}` : `M${place(x(at))} ${place(y(value))}`;
    });
    return [s("path", { class: "area", d: `${d}H${place(x(end))}V${place(y(0))}H${place(x(points[0]?.[0] ?? 0))}Z` }),
      s("path", { class: "line", d: `${d}H${place(x(end))}` }), ...marks(points, x, y)];
  },
  line: (points, x, y) => [s("path", { class: "line", d: path(points, x, y) }), ...marks(points, x, y)],
  bars: (points, x, y) => points.map(([at, value, title]) =>
    s("rect", { class: "bar", x: x(at) - 3, y: y(value), width: 6, height: Math.max(1, y(0) - y(value)) },
      title ? s("title", {}, title) : null)),
};

function marks(points, x, y) {
  if (points.length > 120) return [];
  return points.map(([at, value, title]) =>
    s("circle", { class: "mark", cx: x(at), cy: y(value), r: 3 }, title ? s("title", {}, title) : null));
}
