// The log of a worker, as it grows. Only its last part is kept, so that a chatty worker costs no memory.

import { ask, jobPath, Refused } from "./api.js";
import { h, panel, text } from "./dom.js";

const MOST_CHARACTERS = 200000;
const EVERY_MS = 1000;
const PIECE_BYTES = 262144;

export function logPanel(job) {
  const choice = h("select", { id: "log-worker", onchange: () => open(choice.value) });
  const output = h("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
  const state = h("p", { class: "empty", role: "status" });
  const follow = h("input", { type: "checkbox", id: "log-follow", checked: true });
  const node = panel("Log", { hidden: true }, h("div", { class: "buttons" },
    h("label", { for: "log-worker" }, "Worker "), choice, h("label", { for: "log-follow" }, follow, " keep to the end")),
  state, output);
  let worker = "";
  let offset = 0;
  let timer = 0;
  let request = new AbortController();
  let decoder = new TextDecoder();

  function open(name) {
    close();
    request = new AbortController();
    worker = name;
    offset = 0;
    decoder = new TextDecoder();
    output.replaceChildren();
    choice.value = name;
    node.hidden = false;
    read(name, request.signal);
  }

  /** Open it because somebody asked to see it. */
  function show(name) {
    open(name);
    node.scrollIntoView({ block: "nearest" });
  }

  async function read(name, signal) {
    let more = false;
    try {
      const path = `${jobPath(job)}/logs/${encodeURIComponent(name)}?offset=${offset}&limit=${PIECE_BYTES}`;
      const answer = await ask("GET", path, { signal });
      const bytes = await answer.arrayBuffer();
      if (signal.aborted) return;
      offset = Number(answer.headers.get("x-edl-next-offset") ?? offset + bytes.byteLength);
      append(decoder.decode(bytes, { stream: true }));
      more = bytes.byteLength >= PIECE_BYTES;
      text(state, output.childNodes.length ? "" : "the log is empty so far");
    } catch (error) {
      if (signal.aborted) return;
      text(state, error instanceof Refused ? error.message : "the server cannot be reached; it is tried again");
    }
    timer = setTimeout(() => read(name, signal), more ? 0 : EVERY_MS);
  }

  function append(piece) {
    if (!piece) return;
    output.append(piece);
    let length = output.textContent.length;
    while (length > MOST_CHARACTERS && output.childNodes.length > 1) {
      length -= output.firstChild.length;
      output.firstChild.remove();
    }
    if (follow.checked) output.scrollTop = output.scrollHeight;
  }

  function workers(records) {
    const names = records.map((row) => row.worker);
    if (names.join() !== [...choice.options].map((option) => option.value).join()) {
      choice.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    }
    if (names.includes(worker)) choice.value = worker;
    else if (!worker && names.length) open(names[0]);
  }

  function close() {
    request.abort();
    clearTimeout(timer);
    worker = "";
  }
  return { node, show, workers, close };
}
