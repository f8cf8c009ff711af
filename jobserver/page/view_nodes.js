// Nodes and their slots: a map of all of them on a canvas, and a list of which only what is in sight is built.

import { askToDrain, askToUncordon, askToUndrain } from "./actions.js";
import { h, panel, table, text } from "./dom.js";
import { jobLink, number, plural, when } from "./format.js";
import { hue, nodeMap } from "./node_map.js";

const ROW_PX = 44;
const SPARE_ROWS = 6;

const EVENTS = [
  { title: "When", cell: (event) => when(event.at) },
  { title: "Node", cell: (event) => ({ text: event.fields.node ?? "", badge: event.fields.healthy ? "good" : "bad" }) },
  { title: "What, and why", class: "reason", cell: (event) => event.text },
];

export function nodesView(redraw) {
  let nodes = [];
  let history = [];
  let wanted = "";
  const filter = h("input", { type: "search", id: "filter", placeholder: "name, address, label or job",
    oninput: () => { wanted = filter.value.trim().toLowerCase(); list.scrollTop = 0; redraw(); } });
  const sum = h("p", { class: "sum" });
  const space = h("div", { class: "space" });
  const list = h("div", { class: "list", role: "list", tabindex: "0", "aria-label": "Nodes", onscroll: () => redraw() }, space);
  const map = nodeMap((node) => {
    filter.value = wanted = node.node.toLowerCase();
    redraw();
  });
  const rows = new Map();
  const events = table("Events of nodes", EVENTS);
  const happened = panel("Events of nodes", { hidden: true }, events.node);

  function drawList(found) {
    space.style.height = `${found.length * ROW_PX}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
    const shown = found.slice(first, first + Math.ceil((list.clientHeight || 600) / ROW_PX) + 2 * SPARE_ROWS);
    const names = new Set(shown.map((node) => node.node));
    for (const [name, row] of rows) {
      if (names.has(name)) continue;
      row.node.remove();
      rows.delete(name);
    }
    shown.forEach((node, index) => {
      let row = rows.get(node.node);
      if (row?.of !== node) {
        const made = { of: node, node: nodeRow(node) };
        if (row) row.node.replaceWith(made.node);
        else space.append(made.node);
        rows.set(node.node, (row = made));
      }
      row.node.style.top = `${(first + index) * ROW_PX}px`;
      row.node.setAttribute("aria-posinset", first + index + 1);
      row.node.setAttribute("aria-setsize", found.length);
    });
  }

  return {
    title: "Nodes",
    query: "topics=nodes,events",
    node: h("div", {}, h("h1", {}, "Nodes"), sum, map.node,
      h("p", { class: "filter" }, h("label", { for: "filter" }, "Find "), filter), list, happened),
    change(topic, parts) {
      if (topic === "events") history = Object.values(parts).sort((a, b) => b.number - a.number);
      else nodes = Object.values(parts).sort((a, b) => a.node.localeCompare(b.node, "en", { numeric: true }));
    },
    draw() {
      const slots = nodes.reduce((count, node) => count + node.slots, 0);
      const used = nodes.reduce((count, node) => count + node.workers.length, 0);
      const found = wanted ? nodes.filter((node) => matches(node, wanted)) : nodes;
      text(sum, `${plural(nodes.length, "node")}, ${plural(slots, "slot")}, ${number(used, 9)} in use, ${number(slots - used, 9)} free` +
        (wanted ? `; ${found.length} found` : ""));
      events.update(history, (event) => event.number, "");
      happened.hidden = history.length === 0;
      map.update(found);
      drawList(found);
    },
  };
}

const matches = (node, wanted) => node.node.toLowerCase().includes(wanted) || node.address.toLowerCase().includes(wanted)
  || node.workers.some((worker) => worker.job.toLowerCase().includes(wanted))
  || Object.entries(node.labels).some((pair) => pair.join("=").toLowerCase().includes(wanted));

function nodeRow(node) {
  const taken = new Map(node.workers.map((worker) => [worker.slot, worker]));
  const slots = Array.from({ length: node.slots }, (_, slot) => slotBox(slot, taken.get(slot)));
  const labels = Object.entries(node.labels).map((pair) => pair.join("=")).join(" ");
  const jobs = [...new Set(node.workers.map((worker) => worker.job))];
  const state = node.drain ? "drains" : node.draining ? "leaves" : node.cordoned ? "cordoned" : "";
  return h("div", { class: "node", role: "listitem", "data-node": node.node },
    h("strong", {}, node.node), h("span", { class: "slots", role: "img", "aria-label":
      `${node.workers.length} of ${plural(node.slots, "slot")} in use` }, slots),
    h("span", { class: "jobs" }, jobs.map((job) => h("a", { href: jobLink(job) }, job))),
    h("span", { class: "more" }, [node.address, node.gpus.length ? plural(node.gpus.length, "GPU") : "", labels].filter(Boolean).join("  ")),
    state ? h("span", { class: "badge", "data-kind": "wait" }, state) : null,
    node.cordoned && !node.drain ? h("button", { type: "button", onclick: () => askToUncordon(node) }, "Uncordon") : null,
    node.drain ? h("button", { type: "button", onclick: () => askToUndrain(node) }, "Undrain")
      : h("button", { type: "button", onclick: () => askToDrain(node) }, "Drain"));
}

function slotBox(slot, worker) {
  const title = worker ? `slot ${slot}: ${worker.worker} of ${worker.job}${worker.spare ? ", a spare" : ""}` : `slot ${slot}: free`;
  const box = h("i", { class: worker ? (worker.spare ? "slot spare" : "slot taken") : "slot", title });
  if (worker) box.style.setProperty("--hue", hue(worker.job));
  return box;
}
