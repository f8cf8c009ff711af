// Where the time of a job went: one bar, cut by the seconds of each part. Not there until the server tells them.

import { h, panel } from "./dom.js";
import { percent, seconds } from "./format.js";

const ORDER = ["train", "checkpoint", "between", "data", "teacher", "recompute", "restore", "re_form", "detect", "down", "start", "pending"];
const LABELS = { data: "data wait", teacher: "teacher wait", between: "between steps", re_form: "re-form" };
const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
const label = (name) => LABELS[name] ?? name.replaceAll("_", " ");

export function goodput() {
  const bar = h("div", { class: "bar", role: "img" });
  const legend = h("ul", { class: "legend" });
  const node = panel("Goodput", { class: "panel goodput", hidden: true }, bar, legend);
  let shown = "";

  function update(found) {
    const parts = Object.entries(found ?? {}).filter(([, value]) => typeof value === "number" && value > 0);
    parts.sort((a, b) => place(a[0]) - place(b[0]) || (a[0] < b[0] ? -1 : 1));
    const key = JSON.stringify(parts);
    node.hidden = parts.length === 0;
    if (key === shown) return;
    shown = key;
    const whole = parts.reduce((sum, [, value]) => sum + value, 0);
    const share = (value) => percent(value / whole);
    bar.setAttribute("aria-label", parts.map(([name, value]) => `${label(name)} ${share(value)}`).join(", "));
    bar.replaceChildren(...parts.map(([name, value]) => {
      const part = h("span", { "data-part": place(name), title: `${label(name)}: ${seconds(value)}, ${share(value)}` });
      part.style.flexGrow = String(value / whole);
      return part;
    }));
    legend.replaceChildren(...parts.map(([name, value]) =>
      h("li", {}, h("span", { class: "swatch", "data-part": place(name) }), `${label(name)} ${share(value)} `,
        h("small", {}, seconds(value)))));
  }
  return { node, update };
}
