// One job, wherever it was handed in: its progress with previews, its end, and what can be done with what came of it.

import { blobOf, cancel, filesOf, follow, isElsewhere, typeOf } from "./api.js";
import { button, copy, dialog, dollars, el, fill, note, row, seconds, table } from "./dom.js";
import { toDataUrl } from "./media.js";
import { get, put } from "./store.js";
import { snippets } from "./snippets.js";

const PHASES = { download: "Downloading", load: "Loading the model", inference: "Generating", encode: "Writing the file" };

/** Keep the images of a finished job in this browser. Returns them as the gallery has them. */
export async function keepResults(job, answer) {
  const { image, images, video, videos, ...facts } = answer;
  const kept = [];
  for (const [index, file] of filesOf(answer).entries()) {
    const id = `${job}.${index}`;
    const elsewhere = isElsewhere(file);
    const entry = {
      id, job, index, at: (await get("results", id))?.at ?? Date.now(), model: answer.model, prompt: answer.prompt, answer: facts, seed: answer.seeds?.[index] ?? answer.seed,
      type: typeOf(answer), blob: elsewhere ? null : blobOf(file, typeOf(answer)), place: elsewhere ? file : null,
    };
    await put("results", entry);
    kept.push(entry);
  }
  return kept;
}

/** The exact request of a result: as this browser sent it, or as the worker says it can be sent again. */
export async function requestOf(result) {
  const sent = await get("requests", result.job);
  const input = { ...(sent?.input ?? result.answer.reproduce?.input ?? {}) };
  for (const name of ["previews", "progress"]) delete input[name];
  return { ...input, model: input.model ?? result.model, seed: result.seed };
}

/** What is shown of a result: an image, a video, or the place where it lies. */
export function mediaOf(result, attributes = {}) {
  if (!result.blob) {
    const link = /^https?:/.test(result.place) ? el("a", { href: result.place, rel: "noreferrer noopener", target: "_blank" }, "Open the file") : result.place;
    return el("p", { class: "elsewhere" }, "The file lies elsewhere: ", link);
  }
  const source = URL.createObjectURL(result.blob);
  const free = () => URL.revokeObjectURL(source);
  if (result.type.startsWith("video/")) return el("video", { src: source, controls: true, loop: true, "aria-label": result.prompt ?? "", ...attributes });
  return el("img", { src: source, alt: result.prompt ? `Generated: ${result.prompt}` : "Generated image", onload: free, ...attributes });
}

function download(result) {
  const source = URL.createObjectURL(result.blob);
  const link = el("a", { href: source, download: `${result.job}-${result.index}.${result.type.split("/")[1]}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(source), 10000);
}

/** The buttons of a result. `page` has what these lead to. */
export function actions(result, page) {
  const source = () => toDataUrl(result.blob);
  const isImage = result.blob && result.type.startsWith("image/");
  return el("div", { class: "row actions" },
    result.blob ? button("Save", () => download(result)) : null,
    button("Same settings", async () => page.show(await requestOf(result))),
    button("Vary", async () => page.vary(await requestOf(result), isImage ? await source() : null)),
    isImage ? button("Upscale", async () => page.upscale(await source())) : null,
    isImage ? button("Use as input", async () => page.useAsInput(await source())) : null,
    button("Compare", () => page.compare(result)),
    button("Make a recipe", () => page.page.recipe(result)),
    button("Copy as…", async () => copyAs(await requestOf(result))));
}

/** Offer the request as programs write it. */
export function copyAs(request) {
  return dialog("Copy this request as", () => el("div", {}, Object.entries(snippets(request)).map(([name, text]) =>
    el("details", { class: "part", open: name === "curl" }, el("summary", {}, name),
      el("pre", { tabindex: "0" }, el("code", {}, text)), button(`Copy ${name}`, () => copy(text), { class: "small" }))),
  el("p", { class: "hint" }, "Your key is not in these: YOUR_KEY stands for it. An image that was sent stands as its name.")));
}

export function facts(result) {
  const { answer } = result;
  const { timings = {}, usage = {} } = answer;
  const rows = [
    ["Model", answer.model], ["Task", answer.task], ["Seed", String(result.seed)], ["Size", `${answer.width} × ${answer.height}`],
    ...Object.entries(answer.parameters ?? {}).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]),
    ...(answer.loras ?? []).map((lora) => [`LoRA ${lora.model}`, `weight ${lora.weight}, ${lora.matched} of ${lora.total} layers`]),
    ["Time", ["queue", "download", "load", "inference", "encode"].filter((name) => timings[`${name}_s`] >= 0.005)
      .map((name) => `${name} ${seconds(timings[`${name}_s`])}`).join(", ")],
    ["Price", usage.cost_usd == null ? null : dollars(usage.cost_usd)],
    ["Placed", answer.placement ? `${answer.placement.replica}: ${answer.placement.reason}` : null],
    ["Job", result.job],
  ].filter(([, value]) => value !== null && value !== "" && value !== "null");
  return el("details", { class: "part" }, el("summary", {}, "How it was made"), table("How it was made", ["", ""], rows));
}

/** A card for one job: `show(id)` follows it. `page` leads on; `failed` gets its error. */
export class JobCard {
  constructor(page, failed) {
    Object.assign(this, { page, failed });
    this.node = el("section", { class: "card job", "aria-label": "Job" });
    this.clear();
  }

  clear() {
    this.following?.abort();
    this.id = null;
    fill(this.node, el("p", { class: "empty" }, "What you generate appears here. Drop an image of ours anywhere to have its request back."));
  }

  wait(text) {
    this.following?.abort();
    this.id = null;
    fill(this.node, el("p", { role: "status" }, text));
  }

  /** Follow this job and show it. Resolves when it is over, or another one is shown. */
  async show(id) {
    if (this.id === id) return;
    this.following?.abort();
    const following = (this.following = new AbortController());
    this.id = id;
    const preview = el("img", { class: "preview", alt: "Preview of the unfinished image", hidden: true });
    const progress = el("progress", { "aria-label": "Progress of the job" });
    const text = el("p", { class: "state", role: "status" }, "Waiting for its turn…");
    const stop = button("Cancel", async () => {
      stop.disabled = true;
      try { await cancel(id); } catch (error) { note(error.message, "bad"); stop.disabled = false; }
    }, { class: "danger" });
    fill(this.node, el("div", { class: "frame" }, preview), progress, text,
      row(stop, button("Copy the job's address", () => copy(location.href.split("#")[0] + `#job/${id}`), { class: "quiet" })));
    const begun = { phase: null, at: 0, step: 0 };
    let said = 0;
    const told = (update) => {
      if (update.phase !== begun.phase) Object.assign(begun, { phase: update.phase, at: performance.now(), step: update.step });
      if (update.total) { progress.max = update.total; progress.value = update.step; } else progress.removeAttribute("value");
      if (update.preview) { preview.src = `data:image/jpeg;base64,${update.preview}`; preview.hidden = false; }
      const now = performance.now();
      if (now - said < 400 && update.step !== update.total) return; // a screen reader is told a few times a second at most
      said = now;
      fill(text, sentence(update, begun, now));
    };
    try {
      const job = await follow(id, told, following.signal);
      if (job && !following.signal.aborted) await this._end(id, job);
    } catch (error) {
      if (following.signal.aborted) return;
      const kept = error.status === 404 ? await keptOf(id) : [];
      if (kept.length) this._results(kept);
      else fill(this.node, el("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  async _end(id, job) {
    if (job.status === "COMPLETED" && job.output?.format) {
      this._results(await keepResults(id, job.output));
      window.dispatchEvent(new Event("jobended"));
      return;
    }
    const words = job.error ?? `The job is ${job.status}.`;
    const details = job.output ?? {};
    const again = button("Try again with these settings", async () => this.page.show((await get("requests", id))?.input ?? {}));
    fill(this.node, el("p", { class: job.status === "CANCELLED" ? "state" : "problem", role: "alert" }, words),
      details.hint ? el("p", { class: "hint" }, details.hint) : null, row(again));
    if (job.status !== "CANCELLED") this.failed(id, { message: words, ...details });
  }

  _results(results) {
    const { warnings = [] } = results[0].answer;
    fill(this.node, el("div", { class: results.length > 1 ? "tiles" : "frame" }, results.map((result) =>
      el("figure", {}, mediaOf(result), results.length > 1 ? el("figcaption", {}, `Seed ${result.seed}`, actions(result, this.page)) : null))),
    results.length === 1 ? actions(results[0], this.page) : null,
    warnings.length ? el("ul", { class: "warnings", "aria-label": "Warnings" }, warnings.map((warning) => el("li", {}, warning))) : null,
    el("p", { class: "state", role: "status" }, `Done. Seed ${results[0].seed}, ${seconds(results[0].answer.timings?.inference_s ?? 0)}.`),
    facts(results[0]));
  }
}

async function keptOf(id) {
  const kept = [];
  for (let index = 0, result; (result = await get("results", `${id}.${index}`)); index += 1) kept.push(result);
  return kept;
}

function sentence(update, begun, now) {
  const name = PHASES[update.phase] ?? update.phase;
  if (!update.total) return `${name}…`;
  const done = update.step - begun.step;
  const left = done > 0 ? ((now - begun.at) / 1000 / done) * (update.total - update.step) : null;
  const many = update.phase === "download" ? `${(update.step / 1e9).toFixed(2)} of ${(update.total / 1e9).toFixed(2)} GB` : `step ${update.step} of ${update.total}`;
  return `${name}: ${many}${left !== null && update.step < update.total ? `, about ${seconds(left)} left` : ""}`;
}
