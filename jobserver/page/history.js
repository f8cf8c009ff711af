// What events say of the past of a job: sizes, pauses, epochs, checkpoints. Only computes.

const PHASES = ["shutdown", "gate", "init", "sync", "batch", "step"];
// Scripts choose what they report: only numbers are drawn.
const isNumber = (value) => Number.isFinite(value);
const WITHOUT_WORLD = new Set(["pending", "holding", "succeeded", "failed", "stopped"]);

/** {sizes: [{at, size}], pauses, epochs, checkpoints, marks: [{at, position}]}, each oldest first. */
export function readHistory(events) {
  const found = { sizes: [], pauses: [], epochs: [], checkpoints: [], marks: [] };
  for (const { at, kind, text, fields, number } of events) {
    if (kind === "resize" && isNumber(fields.to)) {
      found.sizes.push({ at, size: fields.to });
      if (isNumber(fields.pause_s)) found.pauses.push({ at, seconds: fields.pause_s, from: fields.from, to: fields.to, text, parts: parts(fields) });
    } else if (kind === "epoch" && isNumber(fields.epoch)) {
      found.epochs.push({ at, ...fields });
      found.marks.push({ at, position: fields.epoch + 1 });
    } else if (kind === "resume" && isNumber(fields.epoch)) {
      found.marks.push({ at, position: fields.epoch });
    } else if (kind === "checkpoint") {
      found.checkpoints.push({ at, number, text, epoch: fields.epoch, seconds: fields.seconds, outcome: fields.outcome ?? null });
    } else if (kind === "job" && WITHOUT_WORLD.has(fields.phase) && found.sizes.length) {
      found.sizes.push({ at, size: 0 });
    }
  }
  return found;
}

const parts = (fields) => PHASES.filter((name) => isNumber(fields[`${name}_s`])).map((name) => [name, fields[`${name}_s`]]);

/** Epochs completed at a moment: straight lines between the moments at which that is known. */
export function epochAt(marks, startedAt, at) {
  let before = { at: startedAt, position: 0 };
  for (const mark of marks) {
    if (mark.at >= at) {
      if (mark.position < before.position || mark.at <= before.at) return before.position;
      return before.position + ((mark.position - before.position) * Math.max(0, at - before.at)) / (mark.at - before.at);
    }
    before = mark;
  }
  return before.position;
}

/** The newest value of `name` for each epoch: an epoch that was trained again counts once. */
export function perEpoch(epochs, name) {
  const found = new Map(epochs.filter((epoch) => isNumber(epoch[name])).map((epoch) => [epoch.epoch, epoch[name]]));
  return [...found].sort((a, b) => a[0] - b[0]);
}
