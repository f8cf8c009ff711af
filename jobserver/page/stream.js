// What the server tells while it changes: server-sent events read with fetch, because EventSource sends no token.
// Whatever breaks, it begins again with everything; a server that says nothing for SILENCE_MS is taken for gone.

import { ask, Refused, token } from "./api.js";

const SILENCE_MS = 15000;
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 5000;

export class Stream {
  /** listeners: change(topic, parts), events(message), state(name, sentence), beat(at). */
  constructor(listeners) {
    this.listeners = listeners;
    this.topics = new Map();
    this.query = "";
    this.last = -1;
    this.retryMs = FIRST_RETRY_MS;
    this.round = 0;
  }

  /** Follow something else; what was known is forgotten. */
  follow(query) {
    this.stop();
    this.query = query;
    this.topics.clear();
    this.last = -1;
    this.retryMs = FIRST_RETRY_MS;
    this._run(this.round);
  }

  stop() {
    this.round += 1;
    this.abort?.abort();
    clearTimeout(this.timer);
  }

  async _run(round) {
    let why;
    try {
      await this._read(round);
      why = "the server ended the connection";
    } catch (error) {
      if (round !== this.round) return;
      why = error instanceof Refused ? error.message : "the server cannot be reached";
      if (error instanceof Refused && !token()) return;
    }
    if (round !== this.round) return;
    this.listeners.state("gone", why);
    const waitMs = this.retryMs * (0.5 + Math.random() / 2);
    this.retryMs = Math.min(2 * this.retryMs, LAST_RETRY_MS);
    this.timer = setTimeout(() => this._run(round), waitMs);
  }

  async _read(round) {
    this.abort = new AbortController();
    const { signal } = this.abort;
    const headers = this.last >= 0 ? { "Last-Event-ID": String(this.last) } : {};
    this._expect();
    const answer = await ask("GET", `/stream?${this.query}`, { signal, headers });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || round !== this.round) return;
      this._expect();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) this._message(part);
      this.retryMs = FIRST_RETRY_MS;
      this.listeners.state("live", "");
    }
  }

  _expect() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.abort.abort(), SILENCE_MS);
  }

  _message(lines) {
    const found = {};
    for (const line of lines.split("\n")) {
      const at = line.indexOf(": ");
      if (at > 0) found[line.slice(0, at)] = line.slice(at + 2);
    }
    if (!found.data) return;
    const data = JSON.parse(found.data);
    if (found.event === "beat") this.listeners.beat(data.at);
    else if (found.event === "change") this._change(data);
    else if (found.event === "events") {
      this.last = Number(found.id);
      this.listeners.events(data);
    }
  }

  _change({ topic, full, parts, gone }) {
    let known = this.topics.get(topic);
    if (!known || full) this.topics.set(topic, (known = Object.create(null)));
    Object.assign(known, parts);
    for (const name of gone) delete known[name];
    this.listeners.change(topic, known, full ? null : Object.keys(parts).concat(gone));
  }
}
