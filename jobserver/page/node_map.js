// All slots at once: a block per node, a cell per slot, a colour per job. Drawn on a canvas; the list below says the same.

import { h, text } from "./dom.js";
import { plural } from "./format.js";

const CELL = 7;
const GAP = 6;
const MOST_HEIGHT_PX = 320;

/** choose(node) is called when its block is clicked. */
export function nodeMap(choose) {
  const canvas = h("canvas", { role: "img" });
  const hint = h("p", { class: "hint", "aria-hidden": "true" });
  const node = h("div", { class: "map" }, canvas, hint);
  let nodes = [];
  let places = { columns: 1, width: 1, height: 1, cell: CELL };
  let shown = null;

  canvas.addEventListener("mousemove", (event) => text(hint, describe(at(event))));
  canvas.addEventListener("mouseleave", () => text(hint, ""));
  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (found) choose(found.node);
  });

  function at(event) {
    const column = Math.floor(event.offsetX / places.width);
    const index = Math.floor(event.offsetY / places.height) * places.columns + column;
    const found = column < places.columns ? nodes[index] : undefined;
    return found && { node: found, slot: Math.floor((event.offsetX - column * places.width) / places.cell) };
  }

  function update(found) {
    node.hidden = found.length === 0;
    if (node.hidden) return; // it has no width
    const width = node.clientWidth;
    const key = [width, devicePixelRatio, matchMedia("(prefers-color-scheme: dark)").matches].join();
    if (shown && shown.key === key && shown.nodes.length === found.length && found.every((one, i) => one === shown.nodes[i])) return;
    shown = { key, nodes: found };
    nodes = found;
    places = layout(found, width);
    paint(canvas, found, places, width);
    canvas.setAttribute("aria-label", `Map of ${plural(found.length, "node")}; the list below says the same`);
  }
  return { node, update };
}

const describe = (found) => {
  if (!found) return "";
  const worker = found.node.workers.find((one) => one.slot === found.slot);
  return `${found.node.node}, ${worker ? `slot ${worker.slot}: ${worker.worker} of ${worker.job}` : "click to find it"}`;
};

/** Cells as large as fit into the width and MOST_HEIGHT_PX. */
function layout(nodes, width) {
  const slots = Math.max(1, ...nodes.map((node) => node.slots));
  for (let cell = 14; ; cell -= 1) {
    const block = slots * cell + GAP;
    const columns = Math.max(1, Math.floor(width / block));
    const height = cell + (cell > 4 ? 4 : 2);
    if (cell <= 2 || Math.ceil(nodes.length / columns) * height <= MOST_HEIGHT_PX) return { columns, width: block, height, cell };
  }
}

function paint(canvas, nodes, { columns, width, height, cell }, wholePx) {
  const heightPx = Math.max(height, Math.ceil(nodes.length / columns) * height);
  canvas.width = wholePx * devicePixelRatio;
  canvas.height = heightPx * devicePixelRatio;
  canvas.style.width = `${wholePx}px`;
  canvas.style.height = `${heightPx}px`;
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  const style = getComputedStyle(canvas);
  const free = style.getPropertyValue("--free");
  const draining = style.getPropertyValue("--wait");
  const lightness = style.getPropertyValue("--job-lightness");
  const colours = new Map();
  nodes.forEach((node, index) => {
    const left = (index % columns) * width;
    const top = Math.floor(index / columns) * height;
    pen.fillStyle = free;
    for (let slot = 0; slot < node.slots; slot += 1) pen.fillRect(left + slot * cell, top, cell - 1, cell);
    for (const { job, slot, spare } of node.workers) {
      if (!colours.has(job)) colours.set(job, `hsl(${hue(job)} 65% ${lightness})`);
      pen.fillStyle = colours.get(job);
      pen.fillRect(left + slot * cell, top, cell - 1, spare ? Math.ceil(cell / 2) : cell);
    }
    if (node.draining) {
      pen.fillStyle = draining;
      pen.fillRect(left, top + cell, node.slots * cell - 1, 2);
    }
  });
}

/** Of a job, the same everywhere and always. */
export function hue(job) {
  let hash = 7;
  for (const character of job) hash = (hash * 31 + character.codePointAt(0)) % 3600;
  return (hash * 137) % 360;
}
