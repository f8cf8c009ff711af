// What changes the cluster, each after a question; and the question for the token.

import { ask, jobPath, Refused, setToken } from "./api.js";
import { h } from "./dom.js";

const dialog = document.getElementById("dialog");

/** Ask; `send` is called with the form's values, and its refusal is shown. */
function question(title, explanation, fields, button, send) {
  const refusal = h("p", { class: "refusal", role: "alert" });
  const confirm = h("button", { type: "submit", class: "primary" }, button);
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, title), h("p", {}, explanation), fields, refusal,
    h("div", { class: "buttons" }, cancel, confirm));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    try {
      await send(Object.fromEntries(new FormData(form)));
      dialog.close();
    } catch (error) {
      refusal.textContent = error instanceof Refused ? error.message : "the server cannot be reached: try again";
    } finally {
      confirm.disabled = false;
    }
  });
  dialog.replaceChildren(form);
  dialog.oncancel = null;
  if (!dialog.open) dialog.showModal();
  (form.querySelector("input, select") ?? cancel).focus();
}

const input = (label, attributes) => h("label", {}, label, h("input", attributes));

export function askToScale(job) {
  const wished = job.spec.np ?? "";
  question(`Scale ${job.job}`,
    `It has ${job.workers} workers, between ${job.min_np} and ${job.max_np}. Workers join and leave at a step boundary. ` +
    "Leave the field empty to give the number back to its schedule, or to what is free.",
    input("Workers", { name: "np", type: "number", min: job.min_np, max: job.max_np, value: String(wished) }),
    "Scale", ({ np }) => ask("POST", `${jobPath(job.job)}/scale`, { body: { np: np === "" ? null : Number(np) } }));
}

export function askToStop(job) {
  question(`Stop ${job.job}?`,
    "Its workers end at their next step; what came after the last checkpoint is lost. edl retry goes on from there.", [], "Stop the job", () => ask("POST", `${jobPath(job.job)}/stop`, { body: {} }));
}

export function askToForget(job) {
  question(`Forget ${job.job}?`, "Its records go, and its name is free. Logs and checkpoints stay.", [], "Forget the job",
    async () => {
      await ask("DELETE", jobPath(job.job));
      location.hash = "#/jobs";
    });
}

const nodePath = (node) => `/nodes/${encodeURIComponent(node)}`;

export function askToDrain(node) {
  const count = node.workers.length;
  question(`Drain ${node.node}?`,
    `${count === 1 ? "Its worker leaves" : `Its ${count} workers leave`} at a step boundary, and it takes no others ` +
    "until it is undrained.",
    input("Seconds that they may take (empty: as each job says)",
      { name: "deadline", type: "number", min: "0", step: "any" }),
    "Drain", ({ deadline }) => ask("POST", `${nodePath(node.node)}/drain`,
      { body: deadline === "" ? {} : { deadline_s: Number(deadline) } }));
}

export function askToUndrain(node) {
  question(`Undrain ${node.node}?`, "It takes workers again.", [], "Undrain",
    () => ask("POST", `${nodePath(node.node)}/undrain`, { body: {} }));
}

export function askToUncordon(node) {
  question(`Uncordon ${node.node}?`, "It takes new workers again.", [], "Uncordon",
    () => ask("POST", `${nodePath(node.node)}/uncordon`, { body: {} }));
}

/** The question cannot be left; `then` is called with the token in its place. */
export function askForToken(refusal, then) {
  question("Token of the cluster",
    "The command edl ui prints an address that holds it. It is kept in this tab only.",
    input("Token", { name: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false" }),
    "Show the cluster", async ({ token }) => {
      setToken(token);
      queueMicrotask(then);
    });
  dialog.querySelector(".refusal").textContent = refusal;
  dialog.querySelector("button[type=button]").remove();
  dialog.oncancel = (event) => event.preventDefault();
}
