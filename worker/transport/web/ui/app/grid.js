// A grid: the same request over seeds, steps, samplers or guidance. Its price is told first, and its jobs live on the worker.

import { ask, cancel, status, submit } from "./api.js";
import { button, el, fill, labelled, newId, note, section } from "./dom.js";
import { roll } from "./form.js";
import { keepResults, mediaOf } from "./job.js";
import { isUnderWay, jobState, regularly } from "./jobs.js";
import { priced, workOf } from "./price.js";
import { get, put } from "./store.js";

const MOST = 100;
const AXES = { "": "nothing", seed: "seeds", num_inference_steps: "steps", scheduler: "samplers", guidance_scale: "guidance", strength: "strength" };
const EXAMPLES = { seed: "4 (so many), or 7, 8, 9", num_inference_steps: "8, 16, 30", scheduler: "euler, dpmpp_2m", guidance_scale: "1, 3, 5", strength: "0.3, 0.6, 0.9" };

function valuesOf(axis, text) {
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  if (axis === "scheduler") return parts;
  const numbers = parts.map(Number);
  if (numbers.some(Number.isNaN)) return null;
  if (axis === "seed" && numbers.length === 1 && numbers[0] <= MOST) {
    const first = roll();
    return Array.from({ length: numbers[0] }, (_, index) => first + index);
  }
  return numbers;
}

/** The part of the workbench that makes a grid of what the form says. */
export function gridPart(form, page) {
  const properties = form.schema.properties;
  const names = Object.keys(AXES).filter((name) => !name || name in properties);
  const axis = (label, chosen) => {
    const input = el("input", { id: newId("values"), type: "text", spellcheck: "false", autocomplete: "off", oninput: change });
    const select = el("select", { id: newId("axis"), onchange: () => { input.value = ""; change(); } }, names.map((name) => el("option", { value: name, selected: name === chosen }, AXES[name])));
    return { select, input, node: el("div", { class: "columns" },
      el("div", { class: "field" }, labelled(label, select)), el("div", { class: "field" }, labelled("Values, with commas", input))) };
  };
  const across = axis("Across", "seed");
  const down = axis("Down", "");
  const told = el("p", { class: "cost", "aria-live": "polite" });
  const go = button("Generate the grid", make, { class: "primary", disabled: true });

  function read() {
    const axes = [across, down].map(({ select, input }) => ({ name: select.value, values: select.value ? valuesOf(select.value, input.value) : [null] }));
    if (axes.some(({ values }) => !values?.length)) return null;
    if (axes[0].name && axes[0].name === axes[1].name) return null;
    return axes;
  }
  function cells(axes) {
    const request = form.request();
    if (!axes.some(({ name }) => name === "seed") && "seed" in properties) request.seed ??= roll(); // so that nothing else differs
    return axes[1].values.map((low) => axes[0].values.map((high) => {
      const cell = { ...request };
      if (axes[0].name) cell[axes[0].name] = high;
      if (axes[1].name) cell[axes[1].name] = low;
      return cell;
    }));
  }
  let asked = 0;
  async function change() {
    for (const { select, input } of [across, down]) { input.placeholder = EXAMPLES[select.value] ?? ""; input.disabled = !select.value; }
    const axes = read();
    const rows = axes ? cells(axes) : [];
    const count = rows.flat().length;
    go.disabled = !count || count > MOST;
    const turn = (asked += 1);
    if (!count) return fill(told, "Give each axis its values.");
    if (count > MOST) return fill(told, `${count} images are more than a grid may have (${MOST}).`);
    try {
      const work = rows.flat().reduce((sum, cell) => sum + workOf(cell, form.schema), 0);
      const { text } = await priced(form, work / count, count);
      return turn === asked ? fill(told, `${count} images: ${text}`) : null;
    } catch (error) {
      return fill(told, error.message);
    }
  }
  async function make() {
    const axes = read();
    if (!axes) return;
    go.disabled = true;
    const grid = { id: crypto.randomUUID?.() ?? String(Date.now()), at: Date.now(), model: form.model, axes, jobs: [], prompt: form.request().prompt };
    try {
      for (const row of cells(axes)) {
        const jobs = [];
        grid.jobs.push(jobs);
        for (const cell of row) {
          const id = await handIn(cell, (text) => fill(told, text));
          await put("requests", { job: id, input: cell, at: Date.now() });
          jobs.push(id);
          await put("grids", grid);
        }
      }
      page.go(`grid/${grid.id}`);
    } catch (error) {
      form.showProblem(error);
      if (grid.jobs.flat().length) note("The grid was begun; what was handed in is among the jobs.", "bad");
    } finally {
      go.disabled = false;
    }
  }
  change();
  return el("details", { class: "card part" }, el("summary", {}, "Grid over seeds, steps, samplers"), across.node, down.node, told, go);
}

/** Hand a job in; a worker that is full says when to come again. */
async function handIn(request, waiting) {
  for (;;) {
    try {
      return (await submit(request)).id;
    } catch (error) {
      if (error.status !== 429) throw error;
      waiting(`${error.message} It is tried again.`);
      await new Promise((resolve) => { setTimeout(resolve, 1000 * (error.retryAfter || 5)); });
    }
  }
}

/** A grid by its address: its jobs as they end. */
export function gridPage(page, id) {
  const place = el("div", {}, el("p", { class: "lead" }, "Loading…"));
  const ended = new Map();
  let leave = () => {};
  get("grids", id).then((grid) => {
    if (!grid) return fill(place, el("p", { class: "problem" }, "This browser keeps no such grid; its jobs are among the jobs, and its images in the gallery."));
    const [across, down] = grid.axes;
    const cell = (job) => el("td", { "data-job": job }, el("a", { href: `#job/${encodeURIComponent(job)}` }, "waiting"));
    const head = (name, value) => (name ? `${AXES[name].replace(/s$/, "")} ${value}` : "");
    fill(place, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Grid" }, el("table", { class: "grid" },
      el("caption", {}, grid.prompt ?? grid.model),
      el("thead", {}, el("tr", {}, el("td", {}), across.values.map((value) => el("th", { scope: "col" }, head(across.name, value))))),
      el("tbody", {}, grid.jobs.map((row, index) => el("tr", {}, el("th", { scope: "row" }, head(down.name, down.values[index])), row.map(cell)))))),
    button("Cancel what is left", async () => {
      for (const job of grid.jobs.flat()) if (!ended.has(job)) await cancel(job).catch(() => null);
    }, { class: "danger" }));
    const cells = new Map([...place.querySelectorAll("td[data-job]")].map((node) => [node.dataset.job, node]));
    const show = async (job, state) => {
      const kept = await get("results", `${job}.0`);
      if (kept) {
        ended.set(job, true);
        fill(cells.get(job), el("a", { href: `#image/${encodeURIComponent(kept.id)}` }, mediaOf(kept)));
      } else if (state && isUnderWay(state)) fill(cells.get(job).firstChild, jobState(state));
      else if (state?.status === "COMPLETED") {
        ended.set(job, true);
        const [first] = await keepResults(job, (await status(job)).output);
        fill(cells.get(job), el("a", { href: `#image/${encodeURIComponent(first.id)}` }, mediaOf(first)));
      } else {
        ended.set(job, true);
        fill(cells.get(job).firstChild, state ? state.error ?? jobState(state) : "no longer kept");
      }
    };
    const look = async () => {
      if (ended.size === cells.size) return leave();
      const states = new Map((await ask("jobs?limit=1000")).jobs.map((job) => [job.id, job]));
      for (const job of cells.keys()) if (!ended.has(job)) await show(job, states.get(job));
    };
    leave = regularly(look, 1000);
  });
  return { node: section("Grid", place), leave: () => leave() };
}
