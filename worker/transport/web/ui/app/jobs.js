// The jobs that this key has at the worker, whichever device handed them in.

import { ask, cancel } from "./api.js";
import { button, changes, el, note, refill, seconds, section, short } from "./dom.js";

const WORDS = { IN_QUEUE: "waiting", IN_PROGRESS: "running", COMPLETED: "done", FAILED: "failed", CANCELLED: "cancelled", TIMED_OUT: "timed out" };
export const isUnderWay = (job) => job.status === "IN_QUEUE" || job.status === "IN_PROGRESS";

/** Run what a button does, and say how it went. */
export async function tried(work, done) {
  try { await work(); if (done) note(done); } catch (error) { note(error.message, "bad"); }
}

/** A field for a model, with those of models.yaml to choose from. */
export const modelInput = (id, attributes = {}) => el("input", { type: "text", id, list: "references", autocomplete: "off", ...attributes });

/** Call `work` now and every so often, less often in a tab that nobody sees. Returns what ends it. */
export function regularly(work, ms) {
  let timer;
  let ended = false;
  let turns = 0;
  const turn = async () => {
    turns += 1;
    if (!document.hidden || turns % 10 === 0) await work().catch((error) => note(error.message, "bad"));
    if (!ended) timer = setTimeout(turn, ms);
  };
  turn();
  return () => { ended = true; clearTimeout(timer); };
}

export function jobState(job) {
  const { progress } = job;
  const step = progress?.total ? ` ${progress.phase} ${progress.step}/${progress.total}` : progress ? ` ${progress.phase}` : "";
  return el("span", { class: `state-${job.status.toLowerCase()}` }, `${WORDS[job.status] ?? job.status}${step}`);
}

export function jobsPage() {
  const list = el("ul", { class: "joblist" });
  const row = (job) => el("li", {},
    el("a", { href: `#job/${encodeURIComponent(job.id)}` }, short(job.prompt || job.action, 120)),
    el("span", { class: "hint" }, `${job.model ?? "the default model"} · ${seconds(job.age_s)} ago · `, jobState(job)),
    job.error ? el("span", { class: "problem" }, job.error) : null,
    isUnderWay(job) ? button("Cancel", () => tried(async () => { await cancel(job.id); await look(); }),
      { class: "small", "aria-label": `Cancel ${short(job.prompt || job.id, 40)}` }) : null);
  const differs = changes();
  async function look() {
    const jobs = (await ask("jobs")).jobs.filter((job) => job.action === "generate");
    if (!differs(jobs.map((job) => [job.id, job.status, job.progress?.step, Math.round(job.age_s / 10)]))) return;
    refill(list, jobs.length ? jobs.map(row) : el("li", { class: "empty" }, "No jobs. What you generate stays here for a while, on the worker, for this key."));
  }
  const leave = regularly(look, 1500);
  return { node: section("Jobs", list), leave };
}
