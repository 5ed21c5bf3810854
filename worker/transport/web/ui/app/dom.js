// Elements without HTML: every text that is shown becomes a text node, whoever wrote it.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected", "multiple", "indeterminate"]);

const shownOf = (children) => children.flat(2).filter((child) => child !== null && child !== undefined && child !== false);

/** Make an element. `attributes` may hold listeners (`onclick`), properties and attributes; null ones are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else if (value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...shownOf(children));
  return node;
}

export const row = (...children) => el("div", { class: "row" }, ...children);

/** A part of the page with its title. */
export const section = (title, ...children) => el("section", { class: "card" }, el("h2", {}, title), ...children);

/** A field with its label before it. */
export const labelled = (text, field) => [el("label", { for: field.id }, text), field];

/** Put these in the place of all that `node` holds. */
export const fill = (node, ...children) => {
  node.replaceChildren(...shownOf(children));
  return node;
};

/** The same for what is shown anew by itself: whoever stands on a button or a link stays on it. */
export function refill(node, ...children) {
  const name = (each) => each.getAttribute("aria-label") ?? each.getAttribute("href");
  const at = node.contains(document.activeElement) ? name(document.activeElement) : null;
  fill(node, ...children);
  if (at) [...node.querySelectorAll("button, a")].find((each) => name(each) === at)?.focus();
}

/** Return what is true of a value that differs from the one before: a button that is being pressed stays where it is. */
export function changes() {
  let before = "";
  return (value) => before !== (before = JSON.stringify(value));
}

export const button = (text, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, text);

let count = 0;
export const newId = (prefix) => `${prefix}-${(count += 1)}`;

/** Say something to everybody, screen readers too, for a while. */
export function note(text, kind = "info") {
  const shown = el("p", { class: `note ${kind}` }, text);
  document.getElementById("notes").append(shown);
  setTimeout(() => shown.remove(), kind === "bad" ? 9000 : 4000);
}

/** Open a dialog of these children; it is removed when it closes. Resolves with what `close(value)` was given. */
export function dialog(title, build, attributes = {}) {
  return new Promise((resolve) => {
    let outcome;
    const heading = newId("dialog");
    const box = el("dialog", { "aria-labelledby": heading, ...attributes });
    const close = (value) => {
      outcome = value;
      box.close();
    };
    box.addEventListener("close", () => {
      box.remove();
      resolve(outcome);
    });
    box.append(
      el("div", { class: "dialog-head" }, el("h2", { id: heading }, title), button("Close", () => close(), { class: "quiet" })),
      build(close),
    );
    document.body.append(box);
    box.showModal();
  });
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    note("Copied.");
  } catch {
    note("The browser does not let this page copy; select the text instead.", "bad");
  }
}

/** A table of rows of cells; a cell is a text or a node. */
export function table(caption, heads, rows) {
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, index) =>
        el(index ? "td" : "th", index ? {} : { scope: "row" }, cell ?? ""))))),
    ),
  );
}

/** A bar of `share` (0 to 1) with its meaning as text beside it. */
export const bar = (share, text) =>
  el("span", { class: "bar" }, el("meter", { min: "0", max: "1", value: String(Math.min(1, share)), "aria-label": text }), text);

export const seconds = (value) =>
  value == null ? "" : value < 10 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
export const dollars = (value) => value == null ? "" : `$${value < 0.01 ? value.toFixed(5) : value.toFixed(2)}`;
export const gigabytes = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} GB`;
export const short = (text, most = 80) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
