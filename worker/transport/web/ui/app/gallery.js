// The gallery: what came into this browser, with search; and the way to compare two.

import { ask, status } from "./api.js";
import { button, el, fill, labelled, note, row, section, short } from "./dom.js";
import { actions, facts, keepResults, mediaOf } from "./job.js";
import { clear, get, remove, results } from "./store.js";

const AT_ONCE = 60;

/** Bring in what the worker still has of this key's jobs and this browser does not. */
async function fetchMissing() {
  const { jobs } = await ask("jobs");
  let brought = 0;
  for (const job of jobs) {
    if (job.status !== "COMPLETED" || job.action !== "generate" || (await get("results", `${job.id}.0`))) continue;
    const { output } = await status(job.id);
    if (output?.format) { await keepResults(job.id, output); brought += 1; }
  }
  return brought;
}

const text = (result) => [result.prompt, result.model, result.seed, result.answer?.task, result.answer?.parameters?.scheduler, result.job].join(" ").toLowerCase();

export function galleryPage(page) {
  const grid = el("ul", { class: "gallery" });
  const search = el("input", { type: "search", id: "gallery-search", placeholder: "Words of the prompt, model, seed …", oninput: () => show() });
  const count = el("p", { class: "hint", role: "status" });
  const compare = button("Compare the two chosen", () => page.go(`compare/${[...chosen].map(encodeURIComponent).join("/")}`), { disabled: true });
  const chosen = new Set();
  let [all, most] = [[], AT_ONCE];

  const choose = (id, on) => {
    if (on) chosen.add(id); else chosen.delete(id);
    compare.disabled = chosen.size !== 2;
  };
  const tile = (result) => el("li", {},
    button([mediaOf(result, { loading: "lazy" })], () => page.go(`image/${encodeURIComponent(result.id)}`), { class: "tile", "aria-label": short(`${result.prompt || result.model}, seed ${result.seed}`) }),
    el("label", { class: "check" }, el("input", { type: "checkbox", checked: chosen.has(result.id), onchange: (event) => choose(result.id, event.target.checked) }),
      " ", short(result.prompt || result.model, 40)));
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = all.filter((result) => words.every((word) => text(result).includes(word)));
    count.textContent = `${matching.length} of ${all.length} images`;
    fill(grid, matching.slice(0, most).map(tile),
      matching.length > most ? el("li", {}, button("Show more", () => { most += AT_ONCE; show(); })) : null);
  };
  const load = async () => { all = await results(); show(); };
  load().then(fetchMissing).then((brought) => (brought ? load() : null)).catch((error) => note(error.message, "bad"));
  const empty = async () => {
    if (!window.confirm("Remove all images and requests that this browser keeps? What the worker keeps stays there.")) return;
    await Promise.all(["results", "requests", "grids"].map(clear));
    await load();
  };
  return {
    node: section("Gallery",
      row(labelled("Search", search), compare, button("Empty it", empty, { class: "quiet" })), count, grid),
    leave() {},
  };
}

export function imagePage(page, id) {
  const node = section("Image");
  get("results", id).then((result) => {
    if (!result) return node.append(el("p", { class: "problem" }, "This browser keeps no such image."));
    return node.append(el("div", { class: "frame" }, mediaOf(result)), el("p", {}, result.prompt ?? ""), actions(result, page.bench),
      button("Remove from the gallery", async () => { await remove("results", id); page.go("gallery"); }, { class: "danger small" }), facts(result));
  });
  return { node, leave() {} };
}
