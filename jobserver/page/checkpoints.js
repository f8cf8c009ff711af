// The checkpoints of a job: those that the JobServer sees, with their validity, and the saves that the job told of.
// The server is asked when the view opens, when the job tells of another save, and by the button; never by the clock.

import { ask, jobPath } from "./api.js";
import { h, panel, table, text } from "./dom.js";
import { bytes, seconds, when } from "./format.js";

const CONDITIONS = { valid: "good", damaged: "bad", unfinished: "wait", unknown: "wait" };
const SEEN = [
  { title: "Number", class: "number", cell: (row) => row.number },
  { title: "Condition", cell: (row) => ({ text: row.condition, badge: CONDITIONS[row.condition] ?? "plain" }) },
  { title: "Epoch", class: "number", cell: (row) => row.epoch },
  { title: "Step", class: "number", cell: (row) => row.step },
  { title: "Size", class: "number", cell: (row) => (row.size_bytes ? bytes(row.size_bytes) : null) },
  { title: "Age", class: "number", cell: (row) => row.age },
  { title: "Pinned", cell: (row) => (row.pinned ? { text: "pinned", badge: "plain" } : null) },
  { title: "Why not", class: "reason", cell: (row) => row.problem },
];
const OUTCOMES = { saved: "good", kept: "wait", failed: "bad", skipped: "bad" };
const TOLD = [
  { title: "When", cell: (saved) => when(saved.at) },
  { title: "Epoch", class: "number", cell: (saved) => saved.epoch },
  { title: "Outcome", cell: (saved) => saved.outcome && { text: saved.outcome, badge: OUTCOMES[saved.outcome] ?? "plain" } },
  { title: "Took", class: "number", cell: (saved) => seconds(saved.seconds) },
  { title: "What", class: "reason", cell: (saved) => saved.text },
];

export function checkpointPanel(name) {
  const seen = table("Checkpoints in the folder", SEEN);
  const told = table("Saves that the job told of", TOLD);
  const sentence = h("p", { class: "hint", role: "status" });
  const again = h("button", { type: "button", onclick: () => look() }, "Look again");
  const folder = h("div", { hidden: true }, seen.node);
  const node = panel("Checkpoints", {}, h("div", { class: "buttons" }, again), sentence, folder,
    h("h3", {}, "Saves that the job told of"), told.node);
  let found = null;
  let asked = null;
  let going = null;

  async function look() {
    going?.abort();
    const mine = going = new AbortController();
    text(sentence, "The JobServer looks …");
    again.disabled = true;
    try {
      found = await (await ask("GET", `${jobPath(name)}/checkpoints`, { signal: mine.signal })).json();
    } catch (error) {
      if (mine.signal.aborted) return;
      found = { problem: error.message };
    }
    again.disabled = false;
    show(Date.now() / 1000);
  }

  function show(now) {
    if (found === null) return;
    const rows = found.checkpoints ?? [];
    const where = `Looked at ${when(found.at)}, which took ${seconds(found.took_s)}.`;
    const more = found.total > rows.length ? ` These are the newest ${rows.length} of ${found.total}.` : "";
    text(sentence, found.problem ?? where + more);
    folder.hidden = rows.length === 0;
    seen.update(rows.map((row) => ({ ...row, age: age(row.created, now) })), (row) => row.name, "");
  }

  function update(job, saves, now) {
    told.update(saves, (saved) => saved.number, "none was told of");
    const key = `${job.submitted_at} ${job.spec.checkpoint_url} ${saves[0]?.number}`;
    if (asked !== key) {
      asked = key;
      look();
    }
    show(now);
  }

  return { node, update, close: () => going?.abort() };
}

function age(created, now) {
  const at = Date.parse(created) / 1000;
  return Number.isNaN(at) ? null : seconds(Math.max(0, Math.floor(now - at)));
}
