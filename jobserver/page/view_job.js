// One job: what it does, how it got there, its workers, events and logs.

import { askToForget, askToScale, askToStop } from "./actions.js";
import { badge, facts, h, panel, table, text } from "./dom.js";
import { known, number, phaseKind, seconds, size, when } from "./format.js";
import { goodput } from "./goodput.js";
import { checkpointPanel } from "./checkpoints.js";
import { readHistory } from "./history.js";
import { jobCharts } from "./job_charts.js";
import { logPanel } from "./log.js";

const ENDED = new Set(["succeeded", "failed", "stopped"]);
const STATES = { running: "good", standby: "good", starting: "wait", leaving: "wait", exited: "done", lost: "bad" };
const LIVE_POINTS = 600;
const MOST_EVENTS = 1000;

const EVENTS = [
  { title: "When", cell: (event) => when(event.at) },
  { title: "Kind", cell: (event) => ({ text: event.kind, badge: "plain" }) },
  { title: "What, and why", class: "reason", cell: (event) => event.text },
];

function workerColumns(openLog, ranks) {
  return [
    { title: "Worker", cell: (row) => ({ key: row.worker, make: () => h("button", { class: "link", type: "button",
      "aria-label": `log of ${row.worker}`, onclick: () => openLog(row.worker) }, row.worker) }) },
    { title: "State", cell: (row) => ({ text: row.state, badge: row.outcome === "failed" ? "bad" : STATES[row.state] }) },
    { title: "Rank", class: "number", cell: (row) => ranks.get(row.worker) },
    { title: "Node", cell: (row) => ({ text: row.node, href: "#/nodes" }) },
    { title: "Slot", class: "number", cell: (row) => row.slot },
    { title: "Generation", class: "number", cell: (row) => row.generation },
    { title: "End", cell: (row) => (row.outcome ? `${row.outcome} (${row.exit_code})` : null) },
  ];
}

export function jobView(name) {
  let job = {};
  let history = readHistory([]);
  let events = new Map();
  let live = [];
  const ranks = new Map();
  const log = logPanel(name);
  const parts = layout(name, workerColumns((worker) => log.show(worker), ranks), log.node, () => job);

  function change(_, found) {
    if (job.submitted_at !== found.submitted_at) [events, live, history] = [new Map(), [], readHistory([])];
    job = { ...found };
    const { progress, rendezvous } = job;
    ranks.clear();
    for (const [worker, , rank] of rendezvous?.members ?? []) ranks.set(worker, rank);
    const last = live.at(-1);
    if (known(progress?.samples_per_s) && (!last || last[0] < progress.last_step_at)) {
      live = [...live.slice(1 - LIVE_POINTS), [progress.last_step_at, progress.samples_per_s]];
    }
  }

  return {
    title: name,
    query: `job=${encodeURIComponent(name)}`,
    node: parts.node,
    change,
    events(found) {
      if (found.anew) events = new Map();
      for (const event of found.events) events.set(event.number, event);
      events = new Map([...events].slice(-MOST_EVENTS));
      history = readHistory(events.values());
    },
    draw(now) {
      if (!("phase" in job)) {
        text(parts.reason, job.missing ?? "");
        parts.rest.hidden = true;
        return;
      }
      parts.rest.hidden = false;
      drawJob(parts, job, now);
      parts.charts.update(job, history, live, now);
      parts.workers.update(job.worker_records, (row) => row.worker, "no worker yet");
      parts.events.update([...events.values()].reverse(), (event) => event.number, "nothing happened yet");
      parts.checkpoints.update(job, [...history.checkpoints].reverse(), now);
      log.workers(job.worker_records);
    },
    close() {
      log.close();
      parts.checkpoints.close();
    },
  };
}

function layout(name, columns, log, now) {
  const parts = {
    phase: h("span"), reason: h("p", { class: "why" }), facts: facts(), goodput: goodput(), charts: jobCharts(),
    workers: table("Workers", columns), events: table("Events", EVENTS), checkpoints: checkpointPanel(name),
    scale: h("button", { type: "button", onclick: () => askToScale(now()) }, "Scale"),
    stop: h("button", { type: "button", class: "danger", onclick: () => askToStop(now()) }, "Stop"),
    forget: h("button", { type: "button", onclick: () => askToForget(now()) }, "Forget"),
  };
  parts.rest = h("div", { hidden: true }, h("div", { class: "buttons" }, parts.scale, parts.stop, parts.forget),
    parts.facts.node, parts.goodput.node, parts.charts.node, panel("Workers", {}, parts.workers.node), log,
    parts.checkpoints.node, panel("Events", {}, parts.events.node));
  parts.node = h("div", {}, h("h1", {}, `${name} `, parts.phase), parts.reason, parts.rest);
  return parts;
}

function drawJob(parts, job, now) {
  const ended = ENDED.has(job.phase);
  if (parts.phase.textContent !== job.phase) parts.phase.replaceChildren(badge(job.phase, phaseKind(job.phase)));
  text(parts.reason, job.reason);
  parts.scale.hidden = ended;
  parts.stop.hidden = ended || job.spec.stopped;
  parts.forget.hidden = !ended;
  parts.goodput.update(job.goodput);
  const { status, spec, progress, driver } = job;
  parts.facts.update([
    ["Workers", size(job)],
    ["Wanted", spec.np ?? (spec.schedule ? "by its schedule" : "as many as are free")],
    ["Spares", spec.spares ? `${job.spares} of ${spec.spares}` : null],
    ["Queue", known(job.queue) ? `no. ${job.queue}` : null],
    ["Priority", job.priority],
    ["Epoch", job.epochs_total ? `${job.epoch} of ${job.epochs_total}` : job.epoch],
    ["Step", number(job.step, 9)],
    ["Throughput", known(job.samples_per_s) ? `${number(job.samples_per_s)} samples/s` : null],
    ["Loss", known(job.loss) ? number(job.loss) : null],
    ["Accuracy", known(job.accuracy) ? number(job.accuracy) : null],
    ["Waits for teachers", known(job.teacher_wait_s_per_step) ? `${seconds(job.teacher_wait_s_per_step)} per step` : null],
    ["Last step", progress?.last_step_at && !ended ? `${seconds(Math.max(0, now - progress.last_step_at))} ago` : null],
    ["Attempt", status ? `${status.attempt} (${status.restarts} restarts, ${status.failures} failures this epoch)` : null],
    ["Gave way to", status?.preempted_for],
    ["Driver", driver ? `${driver.node}, epoch ${driver.epoch}` : null],
    ["Submitted", when(job.submitted_at)],
    ["Command", spec.command.join(" ")],
    ["Checkpoints in", spec.checkpoint_url],
  ]);
}
