// All jobs, those that wait in the order in which they are served, then the others, the newest first.

import { h, table } from "./dom.js";
import { jobLink, known, number, phaseKind, plural, size, when } from "./format.js";

const COLUMNS = [
  { title: "Job", cell: (job) => ({ text: job.job, href: jobLink(job.job) }) },
  { title: "Phase", cell: (job) => ({ text: job.phase, badge: phaseKind(job.phase) }) },
  { title: "Queue", class: "number", cell: (job) => (known(job.queue) ? `no. ${job.queue}` : null) },
  { title: "Priority", class: "number", cell: (job) => job.priority },
  { title: "Workers", class: "number", cell: size },
  { title: "Epoch", class: "number", cell: (job) => (job.epochs_total ? `${job.epoch}/${job.epochs_total}` : job.epoch) },
  { title: "Samples/s", class: "number", cell: (job) => number(job.samples_per_s) },
  { title: "Loss", class: "number", cell: (job) => number(job.loss) },
  { title: "Submitted", cell: (job) => when(job.submitted_at) },
  { title: "Why", class: "reason", cell: (job) => job.reason },
];
const ENDED = new Set(["succeeded", "failed", "stopped"]);

const order = (job) => [known(job.queue) ? 1 : ENDED.has(job.phase) ? 2 : 0, job.queue ?? 0, -job.submitted_at];

function compare(a, b) {
  const [left, right] = [order(a), order(b)];
  const at = left.findIndex((value, index) => value !== right[index]);
  return at < 0 ? (a.job < b.job ? -1 : 1) : left[at] - right[at];
}

export function jobsView() {
  const jobs = table("Jobs", COLUMNS);
  const sum = h("p", { class: "sum" });
  let rows = [];
  return {
    title: "Jobs",
    query: "topics=jobs",
    node: h("div", {}, h("h1", {}, "Jobs"), sum, jobs.node),
    change(_, parts) {
      rows = Object.values(parts).sort(compare);
    },
    draw() {
      const running = rows.filter((job) => !ENDED.has(job.phase));
      const workers = running.reduce((count, job) => count + job.workers, 0);
      sum.textContent = `${plural(running.length, "job")} that ${running.length === 1 ? "has" : "have"} not ended, with ` +
        `${plural(workers, "worker")}; ${rows.filter((job) => known(job.queue)).length} in the queue`;
      jobs.update(rows, (job) => job.job, "No job yet: edl submit -- python train.py");
    },
  };
}
