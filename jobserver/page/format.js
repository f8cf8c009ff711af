// Values as people read them. A value that is not known is a dash.

const DASH = "–";

export const known = (value) => value !== null && value !== undefined;

/** Four significant digits, thousands apart. */
export function number(value, digits = 4) {
  if (!known(value)) return DASH;
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return new Intl.NumberFormat("en", { maximumSignificantDigits: digits }).format(value);
}

export const percent = (value) => (known(value) ? `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %` : DASH);

/** 0.25 -> "250 ms", 75 -> "1 min 15 s". */
export function seconds(value) {
  if (!known(value)) return DASH;
  if (value === 0) return "0 s";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${Number(value.toFixed(1))} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return both(whole, 60, "min", 1, "s");
  if (whole < 86400) return both(whole, 3600, "h", 60, "min");
  return both(whole, 86400, "d", 3600, "h");
}

function both(whole, large, largeName, small, smallName) {
  const rest = Math.floor((whole % large) / small);
  return `${Math.floor(whole / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

/** Wall time: the time of day, with the date if it is another day. */
export function when(at) {
  if (!at) return DASH;
  const date = new Date(at * 1000);
  const clock = date.toLocaleTimeString("en-GB");
  const day = date.toLocaleDateString("en-CA");
  return day === new Date().toLocaleDateString("en-CA") ? clock : `${day} ${clock}`;
}

export const plural = (count, one) => `${number(count, 9)} ${one}${count === 1 ? "" : "s"}`;

/** "2 of 1–4": in the world, of the bounds. */
export const size = (job) =>
  `${job.world_size}${job.workers === job.world_size ? "" : `/${job.workers}`} of ${job.min_np}–${job.max_np}`;

export const jobLink = (name) => `#/jobs/${encodeURIComponent(name)}`;
export const serviceLink = (name) => `#/services/${encodeURIComponent(name)}`;

const PHASES = {
  running: "good", finishing: "good", succeeded: "done", pending: "wait", holding: "wait",
  stopping: "wait", stopped: "done", failed: "bad",
};
export const phaseKind = (phase) => PHASES[phase] ?? "wait";

/** 1536 -> "1.5 KB"; powers of 1000, as disks are sold. */
export function bytes(value) {
  let at = 0;
  for (; value >= 1000 && at < UNITS.length - 1; at += 1) value /= 1000;
  return `${Number(value.toFixed(value < 10 && at ? 1 : 0))} ${UNITS[at]}`;
}

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];
