// Recipes: made from the history of an image or by hand; the worker's checks stand beside the line.

import { ask, post } from "./api.js";
import { button, el, fill, labelled, note, row, section } from "./dom.js";
import { requestOf } from "./job.js";
import { toDataUrl } from "./media.js";
import { results } from "./store.js";

const OF_ALL = ["model", "seed", "num_images", "output", "s3Config", "timeout_s"];

const textsIn = (value) => (typeof value === "string" ? [value] : Object.values(value ?? {}).flatMap(textsIn));

/** The jobs that led to a result, the first first: each with its request, and the results that are images in it. */
async function chainOf(result) {
  const kept = (await results()).reverse();
  const [chain, seen] = [[], new Set()];
  const walk = async (one) => {
    seen.add(one.id);
    const [request, sources] = [await requestOf(one), new Map()];
    for (const url of textsIn(request).filter((text) => text.startsWith("data:image/"))) {
      for (const each of kept) {
        if (each.id === one.id || Math.ceil(each.blob?.size / 3) * 4 !== url.split(",")[1].length || (await toDataUrl(each.blob)) !== url) continue;
        if (!seen.has(each.id)) await walk(each);
        sources.set(url, each.id);
        break;
      }
    }
    chain.push({ id: one.id, request, sources });
  };
  await walk(result);
  return chain;
}

/** A recipe that does what these jobs did: their prompts, and images from elsewhere, are its inputs. */
function recipeOf(chain, task) {
  const inputs = new Map();
  const input = (name, value, means) => {
    let id = name;
    for (let count = 2; inputs.has(id) && inputs.get(id).value !== value; count += 1) id = `${name}-${count}`;
    inputs.set(id, { value, means });
    return `\${inputs.${id}}`;
  };
  const steps = chain.map(({ request, sources }, index) => {
    const reference = (name, text) => {
      const from = chain.findIndex(({ id }) => id === sources.get(text));
      if (from >= 0 && from < index) return `\${steps.step-${from + 1}.image}`;
      if (text.startsWith("data:")) return input(name, text, `{type: ${text.slice(5, 10)}}`);
      return name === "prompt" && text ? input(name, text, `{type: text, default: ${JSON.stringify(text)}}`) : text.replaceAll("${", "$${");
    };
    const written = (name, value) => JSON.stringify(value, (key, each) => (typeof each === "string" ? reference(/^\D/.test(key) ? key : name, each) : each));
    return [`  step-${index + 1}:`, `    model: ${JSON.stringify(request.model)}`,
      ...Object.keys(request).filter((name) => !OF_ALL.includes(name)).map((name) => `    ${name}: ${written(name, request[name])}`)];
  });
  return [...(task?.includes("video") ? [`task: ${task}`] : []), "inputs:", ...[...inputs].map(([id, { means }]) => `  ${id}: ${means}`), "steps:", ...steps.flat(), ""].join("\n");
}

const keep = (name, text) => sessionStorage.setItem("recipe", JSON.stringify({ name, text }));

/** Begin a recipe from the history of a result. */
export async function draftFrom(result) {
  keep("", recipeOf(await chainOf(result), result.answer.task));
}

export function recipesPage(page) {
  const draft = JSON.parse(sessionStorage.getItem("recipe") ?? "{}");
  const name = el("input", { type: "text", id: "recipe-name", value: draft.name ?? "", oninput: changed });
  const text = el("textarea", { id: "recipe-text", value: draft.text ?? "", wrap: "off", "aria-describedby": "recipe-problem", oninput: changed });
  const numbers = el("ol", { "aria-hidden": "true" });
  const problem = el("p", { class: "problem", id: "recipe-problem", role: "alert" });
  const code = el("div", { class: "code" }, numbers, text, problem);
  const list = el("div", {});
  let opened = "";

  function tell(words = "", line = 0) {
    text.rows = Math.max(8, text.value.split("\n").length);
    fill(numbers, Array.from({ length: text.rows }, (_, at) => el("li", { class: at + 1 === line && "problem" })));
    problem.textContent = line ? `Line ${line}: ${words}` : words;
    code.style.setProperty("--line", Math.max(line - 1, 0));
  }
  function changed() { keep(name.value, text.value); tell(); }
  const tried = (work) => () => work().catch((error) => tell(error.message));
  const review = (path, more) => tried(async () => {
    const told = await post(`admin/recipes/${path}`, { name: name.value, text: text.value, ...more?.() });
    tell(told.problem, told.line);
    if (!told.right) return;
    note(!told.saved ? `Right, of ${told.models.join(", ")}.` : told.served ? "Saved and served." : "Saved, not served: see the log.");
    if (!told.saved) return;
    opened = name.value;
    page.bench.schemas.delete(opened);
    await Promise.all([page.bench.start(), look()]);
  });
  async function look() {
    const served = (await ask("models")).models.filter(({ source }) => source === "recipe");
    fill(list, served.map(({ id }) => button(`Edit ${id}`, tried(async () => {
      text.value = (await ask(`admin/recipes/${id}`)).text;
      name.value = opened = id;
      changed();
    }), { class: "small" })));
  }
  tell();
  tried(look)();
  return {
    node: section("Recipes", el("p", {}, "Begin from an image of the gallery, or by hand. An admin key checks and saves."),
      labelled("Name", name), el("label", { for: text.id }, "YAML"), code,
      row(button("Check", review("check")), button("Save", review("save", () => ({ replace: opened === name.value })), { class: "primary" }), list)),
    leave() {},
  };
}
