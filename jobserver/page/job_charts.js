// The past of a job as charts, over time or over epochs.

import { chart } from "./chart.js";
import { h, panel } from "./dom.js";
import { number, seconds } from "./format.js";
import { epochAt, perEpoch } from "./history.js";

const ENDED = new Set(["succeeded", "failed", "stopped"]);

export function jobCharts() {
  const charts = {
    size: chart("World size", "workers"), speed: chart("Throughput", "samples/s"), pause: chart("Pauses", "s"),
    loss: chart("Loss"), accuracy: chart("Accuracy"),
  };
  let axis = "time";
  let redraw = () => {};
  const buttons = ["time", "epochs"].map((name) => h("button", {
    type: "button", "aria-pressed": String(name === axis), onclick: () => choose(name),
  }, name));

  function choose(name) {
    axis = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
    redraw();
  }

  const node = panel("History", { class: "panel history" },
    h("div", { class: "choice", role: "group", "aria-label": "Axis" }, "over ", buttons),
    h("div", { class: "charts" }, Object.values(charts).map((one) => one.node)));
  return {
    node,
    update(job, history, live, now) {
      redraw = () => drawAll(charts, job, history, live, now, axis);
      redraw();
    },
  };
}

function drawAll(charts, job, history, live, now, axis) {
  const begin = Math.min(job.status?.started_at ?? Infinity, history.sizes[0]?.at ?? Infinity, history.epochs[0]?.at ?? Infinity, now || Infinity);
  const end = Math.max(ENDED.has(job.phase) ? job.status.since : now, begin + 1);
  const overTime = axis === "time";
  const x = overTime
    ? { low: 0, high: end - begin, format: seconds, label: "time" }
    : { low: 0, high: Math.max(epochAt(history.marks, begin, end), 1), format: (at) => number(at, 3), label: "epochs" };
  const at = (moment) => (overTime ? moment - begin : epochAt(history.marks, begin, moment));
  const tip = (moment, what) => `${what}, ${overTime ? `after ${seconds(moment - begin)}` : `epoch ${number(at(moment), 3)}`}`;

  charts.size.update({
    kind: "steps", x, points: history.sizes.map(({ at: moment, size }) => [at(moment), size, tip(moment, `${size} workers`)]),
  });
  charts.speed.update({
    kind: "line", x, last: job.samples_per_s ?? undefined, live: live.map(([moment, value]) => [at(moment), value]),
    points: history.epochs.filter((epoch) => Number.isFinite(epoch.samples_per_s))
      .map((epoch) => [at(epoch.at), epoch.samples_per_s, tip(epoch.at, `${number(epoch.samples_per_s)} samples/s with ${epoch.workers} workers`)]),
  });
  charts.pause.update({
    kind: "bars", x, points: history.pauses.map((pause) => [at(pause.at), pause.seconds, tip(pause.at, pauseText(pause))]),
  });
  const byEpoch = { low: 0, high: Math.max(job.epoch, ...history.epochs.map((epoch) => epoch.epoch + 1), 1), format: (value) => number(value, 3), label: "epochs" };
  for (const name of ["loss", "accuracy"]) {
    charts[name].update({
      kind: "line", x: byEpoch, fromZero: false,
      points: perEpoch(history.epochs, name).map(([epoch, value]) => [epoch + 1, value, `epoch ${epoch}: ${number(value)}`]),
    });
  }
}

function pauseText({ from, to, seconds: spent, parts }) {
  const where = parts.length ? ` (${parts.map(([name, value]) => `${name} ${seconds(value)}`).join(", ")})` : "";
  return `${from} → ${to} workers: ${seconds(spent)}${where}`;
}
