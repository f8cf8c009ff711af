// Elements from values. Strings only ever become text: the policy of the page forbids markup made of strings.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element: h("a", {href: "#/jobs"}, "Jobs"). */
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/** Set the text only if it is another: so a selection, and what a screen reader says, survives. */
export function text(node, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** A table whose rows are kept by key: only cells that changed are touched. */
export function table(caption, columns) {
  const body = h("tbody");
  const rows = new Map();
  const empty = h("p", { class: "empty", hidden: true });
  const head = h("tr", {}, columns.map((c) => h("th", { scope: "col", class: c.class }, c.title)));
  const node = h("div", { class: "table", role: "region", "aria-label": caption, tabindex: "0" },
    h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, head), body), empty);

  function update(items, key, whenEmpty) {
    const wanted = new Set();
    let before = null;
    for (const item of items) {
      const name = key(item);
      wanted.add(name);
      let row = rows.get(name);
      if (!row) {
        row = h("tr", { "data-key": name }, columns.map((c, at) => h(at ? "td" : "th",
          { class: c.class, scope: at ? null : "row", "data-title": c.title })));
        rows.set(name, row);
      }
      columns.forEach((column, at) => fill(row.children[at], column.cell(item)));
      const place = before ? before.nextSibling : body.firstChild;
      if (place !== row) body.insertBefore(row, place);
      before = row;
    }
    for (const [name, row] of rows) {
      if (wanted.has(name)) continue;
      row.remove();
      rows.delete(name);
    }
    text(empty, whenEmpty);
    empty.hidden = wanted.size > 0;
  }
  return { node, update };
}

/** A cell is text, or {text, href}, {text, badge}, or an element that is replaced only when its `key` changes. */
function fill(cell, value) {
  if (value !== null && typeof value === "object") {
    const key = value.key ?? `${value.text} ${value.href ?? ""} ${value.badge ?? ""}`;
    if (cell.dataset.shown === key) return;
    cell.dataset.shown = key;
    cell.replaceChildren(value.make ? value.make() : value.href
      ? h("a", { href: value.href }, value.text) : badge(value.text, value.badge));
  } else {
    delete cell.dataset.shown;
    text(cell, value ?? "–");
  }
}

export const badge = (label, kind) => h("span", { class: "badge", "data-kind": kind }, label);

/** A definition list that is kept: facts.update([["phase", "running"], ...]). */
export function facts() {
  const node = h("dl", { class: "facts" });
  const shown = new Map();
  function update(pairs) {
    for (const [name, value] of pairs) {
      if (!shown.has(name)) {
        const at = h("dd");
        shown.set(name, at);
        node.append(h("div", {}, h("dt", {}, name), at));
      }
      const at = shown.get(name);
      at.parentNode.hidden = value === null || value === undefined || value === "";
      text(at, value);
    }
  }
  return { node, update };
}

/** A section with a heading; `wide` takes the whole row. */
export const panel = (title, attributes, ...children) =>
  h("section", { class: "panel", "aria-label": title, ...attributes }, h("h2", {}, title), ...children);
