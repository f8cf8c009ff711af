// The frame of the page: which view is shown, the connection, the token.

import { askForToken } from "./actions.js";
import { forgetToken, onRefused, takeToken, token } from "./api.js";
import { text } from "./dom.js";
import { when } from "./format.js";
import { Stream } from "./stream.js";
import { jobView } from "./view_job.js";
import { jobsView } from "./view_jobs.js";
import { nodesView } from "./view_nodes.js";
import { serviceView, servicesView } from "./view_services.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const problem = document.getElementById("problem");
const leader = document.getElementById("leader");

let view = null;
let drawing = 0;
let server = {};
// the server's time, when it was told, and when anything was heard last
let [serverAt, toldMs, heardAt] = [0, 0, 0];

const stream = new Stream({
  change(topic, parts) {
    if (topic === "server") showServer(parts);
    else view?.change(topic, parts);
    draw();
  },
  events(found) {
    view?.events?.(found);
    draw();
  },
  state: showLink,
  beat(at) {
    [serverAt, toldMs] = [at, performance.now()];
    draw();
  },
});

/** The time by the server's clock, in seconds since 1970; 0 until it is known. */
const now = () => (serverAt ? serverAt + (performance.now() - toldMs) / 1000 : 0);

/** Draw once for all that came before the next frame. */
function draw() {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    view?.draw(now());
  });
}

function showLink(state, why) {
  link.dataset.state = state;
  if (state === "live") heardAt = now();
  text(link, state === "live" ? "live" : "reconnecting");
  showProblem(state === "live" ? "" : `Not live: ${why}. Shown is what was known at ${when(heardAt)}; it is tried again.`);
}

function showServer(parts) {
  server = parts;
  text(leader, parts.leader ? `leader ${parts.leader}` : "no leader");
  showProblem("");
}

function showProblem(sentence) {
  const sentences = [sentence, ...(server.problems ?? [])];
  if (server.zookeeper && server.zookeeper !== "connected") {
    sentences.push("The JobServer cannot reach ZooKeeper: training goes on, nothing is decided, and this page stands still.");
  }
  text(problem, sentences.filter(Boolean).join(" "));
  problem.hidden = !problem.textContent;
}

function choose() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  let argument = "";
  try {
    argument = decodeURIComponent(rest.join("/"));
  } catch {
    return { name: "jobs", make: jobsView };
  }
  if (name === "nodes") return { name, make: nodesView };
  if (name === "services") return { name, make: argument ? () => serviceView(argument) : servicesView };
  if (name === "jobs" && argument) return { name, make: () => jobView(argument) };
  return { name: "jobs", make: jobsView };
}

function show() {
  if (location.hash.startsWith("#token=")) takeToken();
  if (!token()) {
    stream.stop();
    askForToken("", show);
    return;
  }
  const chosen = choose();
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.dataset.view === chosen.name) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  view?.close?.();
  view = chosen.make(draw);
  document.title = `${view.title} – EDL`;
  main.replaceChildren(view.node);
  scrollTo(0, 0);
  follow();
}

/** A tab that nobody looks at follows nothing: a browser opens few connections to one server. */
function follow() {
  if (document.hidden || !view) stream.stop();
  else stream.follow(view.query);
}

onRefused((sentence) => {
  forgetToken();
  stream.stop();
  view?.close?.();
  view = null;
  main.replaceChildren();
  askForToken(sentence, show);
});
addEventListener("hashchange", show);
document.addEventListener("visibilitychange", follow);
addEventListener("resize", draw);
takeToken();
show();
