// Training: a form that shows the plan first, and a look at one training: losses, samples of each step, what it may be told.

import { ask, post, wordsOf } from "./api.js";
import { button, dollars, el, fill, labelled, note, refill, row, seconds, section, table } from "./dom.js";
import { isUnderWay, jobState, regularly } from "./jobs.js";
import { toDataUrl } from "./media.js";

const number = (value) => ({ type: "number", step: "any", value });
const FIELDS = [
  ["model", "Model", { list: "references" }], ["name", "Name of the LoRA", { required: true }],
  ["zip", "Images: a ZIP file", { type: "file", accept: ".zip" }], ["links", "… or links, one a line; a caption may follow after |", { tag: "textarea" }],
  ["folder", "… or a folder or ZIP below datasets on the volume", {}], ["trigger", "Trigger word", {}],
  ["steps", "Steps", number("1000")], ["save_every", "A checkpoint every so many steps", number("250")], ["batch_size", "Images a step", number("")],
  ["rank", "Rank", number("16")], ["learning_rate", "Learning rate; else the model's", number("")], ["samples", "Prompts of samples, one a line", { tag: "textarea" }],
];
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

async function read(inputs) {
  const { zip, links, folder, samples, ...plain } = inputs;
  const sent = {};
  for (const [name, { type, value }] of Object.entries(plain)) if (value.trim()) sent[name] = type === "number" ? Number(value) : value.trim();
  if (samples.value.trim()) sent.samples = lines(samples.value);
  if (zip.files[0]) sent.data = await toDataUrl(zip.files[0]);
  else if (folder.value.trim()) sent.data = `volume:${folder.value.trim()}`;
  else sent.data = lines(links.value).map((line) => { const [image, caption = ""] = line.split("|"); return { image: image.trim(), caption: caption.trim() }; });
  return sent;
}

function planTable(plan) {
  const { dataset, sizes } = plan;
  return [table("What it would take", ["", ""], [
    ["Images", `${dataset.images}, ${dataset.captions} with a caption`], ["Learnt at", sizes.map(({ images, width, height }) => `${images} at ${width} × ${height}`).join(", ")],
    ["Each is seen", `${plan.times_each_image_is_seen} times`], ["Fits", plan.fits === false ? `no: ${plan.reason}` : "yes"],
    ["Time", plan.expected_s === null ? "known once a job or a training of this model was timed here"
      : `about ${seconds(plan.expected_s)}${plan.expected_from === "serving" ? ", estimated from serving" : ""}`],
    ["Price", plan.expected_usd === null ? "not known" : `about ${dollars(plan.expected_usd)}`],
  ]), el("ul", { class: "warnings", "aria-label": "Faults of the images" }, dataset.faults.map((fault) => el("li", {}, fault)))];
}

function formPage(page) {
  const inputs = Object.fromEntries(FIELDS.map(([name, , { tag = "input", ...rest }]) => [name, el(tag, { id: `train-${name}`, autocomplete: "off", ...rest })]));
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const plan = el("div", { "aria-live": "polite" });
  const start = button("Start the training", () => tried(async () => {
    const { id } = await post("v2/page/run", { input: { action: "train", ...(await read(inputs)) } });
    page.go(`train/${encodeURIComponent(inputs.name.value.trim())}/${encodeURIComponent(id)}`);
  }), { class: "primary", disabled: true });
  async function tried(work) {
    problem.hidden = true;
    try { await work(); } catch (error) {
      fill(problem, wordsOf(error));
      problem.hidden = false;
      inputs[error.field]?.focus();
    }
  }
  const look = (event) => {
    event.preventDefault();
    fill(plan, "Looking at the images…");
    tried(async () => { fill(plan, planTable(await post("run", { action: "train_plan", ...(await read(inputs)) }))); start.disabled = false; });
  };
  const list = el("ul", { class: "joblist" });
  const leave = regularly(async () => {
    const jobs = (await ask("jobs")).jobs.filter((job) => job.action === "train" && job.name);
    refill(list, jobs.map((job) => el("li", {}, el("a", { href: `#train/${encodeURIComponent(job.name)}/${encodeURIComponent(job.id)}` }, job.name), jobState(job))));
  }, 5000);
  const form = el("form", { onsubmit: look, oninput: () => { start.disabled = true; } },
    FIELDS.map(([name, label]) => el("div", {}, labelled(label, inputs[name]))),
    row(el("button", { type: "submit" }, "What it would take"), start));
  return { node: section("Train", list, form, problem, plan), leave };
}

/** Each loss as a dot, and their running mean as a line. */
function draw(canvas, losses) {
  const pen = canvas.getContext("2d");
  const most = Math.max(...losses.map(([, loss]) => loss), 1e-9);
  const at = ([step, loss]) => [4 + (step / losses.at(-1)[0]) * (canvas.width - 8), canvas.height - 4 - (loss / most) * (canvas.height - 8)];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = pen.strokeStyle = getComputedStyle(canvas).color;
  pen.lineWidth = 2;
  pen.beginPath();
  let mean = losses[0][1];
  for (const [step, loss] of losses) {
    pen.fillRect(...at([step, loss]), 2, 2);
    pen.lineTo(...at([step, (mean += (loss - mean) * 0.1)]));
  }
  pen.stroke();
  canvas.setAttribute("aria-label", `Loss: ${losses[0][1].toFixed(3)} at first, ${mean.toFixed(3)} on average now`);
}

function watchPage(name, id) {
  const bar = el("progress", { "aria-label": "Steps" });
  const text = el("p", { class: "state", role: "status" }, "Looking…");
  const plot = el("canvas", { width: 640, height: 160, class: "plot", role: "img", "aria-label": "Loss" });
  const grid = el("div", {});
  const steps = new Map();
  const control = (fields) => post("run", { action: "train_control", name, ...fields });
  const wish = (word, label) => button(label, () => control({ control: word }).then(() => note("After this step."), (error) => note(error.message, "bad")));
  const wishes = row(wish("sample", "Sample now"), wish("save", "Save now"), wish("stop", "Stop"));
  async function look() {
    const job = (await ask("jobs")).jobs.find((each) => each.id === id);
    const over = !job || !isUnderWay(job);
    const state = await control({ samples_after: Math.max(-1, ...steps.keys()) }).catch((error) => { if (over) throw error; });
    if (!state) return; // it waits for its turn
    Object.assign(bar, { max: state.of || 1, value: state.step });
    wishes.hidden = over;
    const end = over && job?.status === "COMPLETED" ? (await ask(`v2/page/status/${encodeURIComponent(id)}`)).output : null;
    const words = end ? end.next ?? `Done; requests take it as loras: ["${name}"].` : over ? job?.error : job.progress?.message ?? job.progress?.phase;
    fill(text, [`Step ${state.step} of ${state.of}`, words, dollars(end?.usage.cost_usd)].filter(Boolean).join(" · "));
    if (state.losses.length) draw(plot, state.losses);
    for (const { step, prompt, image } of state.samples) {
      if (!steps.has(step)) steps.set(step, []);
      steps.get(step)[prompt - 1] = el("img", { src: `data:image/png;base64,${image}`, alt: `Sample ${prompt} at ${step ? `step ${step}` : "the base"}` });
    }
    if (state.samples.length) {
      const most = Math.max(...[...steps.values()].map((row) => row.length));
      fill(grid, table("Samples, by serving with the file of each step", ["", ...Array.from({ length: most }, (_, index) => `Prompt ${index + 1}`)],
        [...steps].map(([step, row]) => [step ? `Step ${step}` : "Base", ...row])));
    }
  }
  const leave = regularly(look, 2000);
  return { node: el("section", { class: "card training" }, el("h2", {}, name), bar, text, wishes, plot, grid), leave };
}

export const trainPage = (page, name, id) => (name ? watchPage(name, id) : formPage(page));
