// What others publish and this worker can run: a search, what was found, and what is listed and cannot be had.

import { post, wordsOf } from "./api.js";
import { button, copy, dollars, el, fill, gigabytes, labelled, note, row, seconds, section, short } from "./dom.js";

const KINDS = ["", "model", "lora", "embedding", "vae", "controlnet", "ip-adapter", "hypernetwork", "upscaler"];
const FIELDS = ["text", "base", "model", "prompt"];

/** One find: its name leads to its page, the rest says what it is and what it takes. */
function card(find, page) {
  const title = find.page?.startsWith("https://")
    ? el("a", { href: find.page, rel: "noreferrer noopener", target: "_blank" }, find.name) : find.name;
  const facts = [
    find.kind, find.family ?? find.architecture, find.variant, gigabytes(find.size_gb),
    find.estimated_gb ? `${gigabytes(find.estimated_gb)} of memory` : null,
    find.expected_s ? `about ${seconds(find.expected_s)} an image` : null, find.expected_usd ? dollars(find.expected_usd) : null,
    find.downloads ? `${find.downloads.toLocaleString("en")} downloads` : null, find.uses ? `${find.uses} jobs here` : null,
    `licence: ${find.licence ?? "not told"}`,
  ];
  const use = find.registered && !find.goes_with.length
    ? button(`Use ${find.registered}`, () => { page.go("create"); page.bench.choose(find.registered); }) : null;
  return el("li", {}, el("h3", {}, title), el("p", {}, facts.filter(Boolean).join(" · ")),
    find.trigger_words.length ? el("p", {}, `Words: ${short(find.trigger_words.join(", "), 200)}`) : null,
    find.goes_with.length ? el("p", {}, `Goes with ${short(find.goes_with.join(", "), 120)}`) : null,
    find.notes.map((text) => el("p", { class: "hint" }, text)),
    el("p", { class: "row" }, el("code", {}, find.model), use,
      button("Copy reference", () => copy(find.model), { "aria-label": `Copy the reference of ${find.name}` }),
      find.registered ? null : button("Add to models.yaml", (event) => add(find, event.currentTarget), { "aria-label": `Add ${find.name} to models.yaml` })));
}

/** Write a find into models.yaml, or where it waits for a review; that takes an admin key. */
async function add(find, pressed) {
  const name = window.prompt(`Name of ${find.name} in models.yaml`, find.name.toLowerCase().replace(/[^a-z0-9._]+/g, "-").replace(/^-|-$/g, ""));
  if (!name) return;
  try {
    const added = await post("admin/models/add", { name, model: find.model });
    pressed.replaceWith(added.waits ? `${name} waits for review in ${added.file}.` : `It is ${name} in ${added.file}, and served.`);
  } catch (error) { note(wordsOf(error), "bad"); }
}

export function discoverPage(page) {
  const input = (name, label, hint) => {
    const field = el("input", { id: `discover-${name}`, name, placeholder: hint, autocomplete: "off" });
    return el("div", {}, labelled(label, field));
  };
  const kind = el("select", { id: "discover-kind", name: "kind" }, KINDS.map((name) => el("option", { value: name }, name || "what fits")));
  const state = el("p", { role: "status" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const found = el("ul", { class: "finds" });
  const rest = el("div", {});
  const go = el("button", { type: "submit", class: "primary" }, "Search");

  async function search(event) {
    event.preventDefault();
    const form = new FormData(event.target);
    const sent = [...FIELDS, "kind"].map((name) => [name, form.get(name).trim()]).filter(([, value]) => value);
    const wish = Object.fromEntries(sent);
    if (/^\S+[:/]\S+$/.test(wish.text ?? "")) { wish.reference = wish.text; delete wish.text; }
    go.disabled = true;
    problem.hidden = true;
    fill(found); fill(rest);
    state.textContent = "Looking at CivitAI and the Hub; half a minute at most.";
    try {
      const answer = await post("run", { action: "discover", ...wish });
      state.textContent = `${answer.finds.length} found that this worker can run${answer.unseen ? `, ${answer.unseen} more not looked at in time` : ""}.`;
      fill(found, answer.finds.map((find) => card(find, page)));
      fill(rest, answer.problems.map((text) => el("p", { class: "problem" }, text)),
        answer.withheld.length ? el("details", {}, el("summary", {}, `${answer.withheld.length} listed, and not to be had or run here`),
          el("ul", {}, answer.withheld.map((item) => el("li", {}, `${item.name} (${item.model}): ${item.reason}`)))) : null);
    } catch (error) {
      state.textContent = "";
      problem.hidden = false;
      problem.textContent = wordsOf(error);
      if (error.field) document.getElementById(`discover-${error.field}`)?.focus();
    } finally { go.disabled = false; }
  }

  return {
    node: section("Discover",
      el("form", { onsubmit: search },
        input("text", "Look for", "anime sdxl lora, or a reference"), el("div", {}, labelled("Kind", kind)),
        input("base", "Family", "sdxl, Flux.1 D …"), input("model", "To go with", "a model of this worker"),
        input("prompt", "Ordered by a prompt, which is sent to no site", ""), row(go)),
      problem, state, found, rest),
    leave() {},
  };
}
