// Services: which teachers answer how fast, and which students wait for them.

import { facts, h, panel, table, text } from "./dom.js";
import { number, percent, plural, seconds, serviceLink } from "./format.js";

const hungry = (value) => ({ text: percent(value), badge: value > 0.1 ? "bad" : value > 0.02 ? "wait" : "good" });

const SERVICES = [
  { title: "Service", cell: (row) => ({ text: row.service, href: serviceLink(row.service) }) },
  { title: "Teachers", class: "number", cell: (row) => row.teachers },
  { title: "Students", class: "number", cell: (row) => row.students },
  { title: "Can answer /s", class: "number", cell: (row) => number(row.rate) },
  { title: "Answers /s", class: "number", cell: (row) => number(row.answered_rate) },
  { title: "Wanted /s", class: "number", cell: (row) => number(row.demand) },
  { title: "Queue", class: "number", cell: (row) => row.queue },
  { title: "Starved", class: "number", cell: (row) => (row.students ? hungry(row.starved) : null) },
  { title: "Jobs", cell: (row) => row.jobs.join(", ") || null },
];
const TEACHERS = [
  { title: "Teacher", cell: (row) => row.teacher },
  { title: "State", cell: (row) => ({ text: row.draining ? "draining" : "serving", badge: row.draining ? "wait" : "good" }) },
  { title: "Can answer /s", class: "number", cell: (row) => number(row.rate) },
  { title: "Answers /s", class: "number", cell: (row) => number(row.answered_rate) },
  { title: "Median", class: "number", cell: (row) => seconds(row.latency_p50_s) },
  { title: "99 %", class: "number", cell: (row) => seconds(row.latency_p99_s) },
  { title: "Queue", class: "number", cell: (row) => row.queue },
  { title: "Model", cell: (row) => row.model },
  { title: "At", cell: (row) => row.url },
  { title: "Students", cell: (row) => row.students.join(", ") || null },
];
const STUDENTS = [
  { title: "Student", cell: (row) => row.student },
  { title: "Reads /s", class: "number", cell: (row) => number(row.rate) },
  { title: "Could read /s", class: "number", cell: (row) => number(row.demand) },
  { title: "Starved", class: "number", cell: (row) => hungry(row.starved) },
  { title: "Waited in all", class: "number", cell: (row) => seconds(row.starved_s) },
  { title: "Waits per step", class: "number", cell: (row) => seconds(row.wait_s_per_step) },
  { title: "Teachers", cell: (row) => row.teachers.join(", ") || null },
  { title: "Stands still for", class: "reason", cell: (row) => row.waiting_for },
];

export function servicesView() {
  const services = table("Services", SERVICES);
  let rows = [];
  return {
    title: "Teachers",
    query: "topics=services",
    node: h("div", {}, h("h1", {}, "Teachers and students"), services.node),
    change(_, parts) {
      rows = Object.values(parts).sort((a, b) => (a.service < b.service ? -1 : 1));
    },
    draw() {
      services.update(rows, (row) => row.service, "No service yet: edl submit --service NAME -- edl teacher serve");
    },
  };
}

export function serviceView(name) {
  const [about, missing] = [facts(), h("p", { class: "empty" })];
  const teachers = table("Teachers", TEACHERS);
  const students = table("Students", STUDENTS);
  let service = {};
  return {
    title: name,
    query: `service=${encodeURIComponent(name)}`,
    node: h("div", {}, h("h1", {}, `Service ${name}`), missing, about.node,
      panel("Teachers", {}, teachers.node), panel("Students", {}, students.node)),
    change(_, parts) {
      service = parts;
    },
    draw() {
      text(missing, service.missing);
      about.update([
        ["Teachers", service.missing ? null : plural(service.teachers ?? 0, "teacher")],
        ["Students", service.missing ? null : plural(service.students ?? 0, "student")],
        ["Can answer", service.rate ? `${number(service.rate)} samples/s` : null],
        ["Answers", service.missing ? null : `${number(service.answered_rate)} samples/s`],
        ["Wanted", service.demand ? `${number(service.demand)} samples/s` : null],
        ["Starved", service.students ? percent(service.starved) : null],
        ["Jobs", service.jobs?.join(", ")],
        ["Problems", service.problems?.join(" ")],
      ]);
      teachers.update(service.teacher_records ?? [], (row) => row.teacher, "no teacher is listed");
      students.update(service.student_records ?? [], (row) => row.student, "no student reads");
    },
  };
}
