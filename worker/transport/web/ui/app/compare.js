// Two images beside or over each other, and in what they differ.

import { el, fill, labelled, row, section, table } from "./dom.js";
import { mediaOf } from "./job.js";
import { get } from "./store.js";

/** All facts of a result by their names, one level deep. */
function flat(result) {
  const { answer } = result;
  const parts = { model: answer.model, revision: answer.revision, task: answer.task, prompt: answer.prompt, seed: result.seed, width: answer.width, height: answer.height, ...answer.parameters };
  for (const [name, value] of Object.entries(answer.reproduce?.input ?? {})) parts[name] ??= value;
  for (const [name, value] of Object.entries(answer.reproduce?.versions ?? {})) parts[`version of ${name}`] = value;
  for (const lora of answer.loras ?? []) parts[`LoRA ${lora.model}`] = lora.weight;
  parts["seconds of inference"] = answer.timings?.inference_s;
  parts["price in dollars"] = answer.usage?.cost_usd;
  return Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, value == null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value)]));
}

export function comparePage(page, ids) {
  const place = el("div", {}, el("p", { class: "lead" }, "Loading…"));
  Promise.all(ids.map((id) => get("results", id))).then(([one, other]) => {
    if (!one || !other) return fill(place, el("p", { class: "problem" }, "This browser keeps no such two images; choose two in the gallery."));
    const [before, after] = [flat(one), flat(other)];
    const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    const differing = names.filter((name) => before[name] !== after[name]);
    const over = el("div", { class: "over" }, mediaOf(other), el("div", { class: "upper" }, mediaOf(one)));
    const slider = el("input", { type: "range", id: "divide", min: 0, max: 100, value: "50", oninput: () => over.style.setProperty("--share", `${slider.value}%`) });
    return fill(place, over, row(labelled("First to the left, second to the right of", slider)),
      table("In what they differ", ["", "First", "Second"], differing.map((name) => [name, before[name] ?? "", after[name] ?? ""])),
      differing.length ? null : el("p", {}, "In nothing that is known."),
      el("p", { class: "hint" }, `${names.length - differing.length} facts are the same.`));
  });
  return { node: section("Compare", place), leave() {} };
}
