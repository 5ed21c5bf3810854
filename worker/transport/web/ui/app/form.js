// The form of one model, made from that model's own schema. It shows what the task at hand takes, and sends what was set.

import { button, el, fill, newId, row } from "./dom.js";
import { controlFor, labelOf } from "./controls.js";
import { openMaskBrush } from "./mask.js";
import { isMedia, reading } from "./schema.js";

// Not of the form: what the page sets by itself, and what is no business of a page (keys of buckets).
const UNSHOWN = new Set(["action", "traceparent", "model", "arm", "s3Config", "progress", "previews", "profile", "output", "width", "height", "seed"]);
const FIRST = ["prompt", "negative_prompt", "strength"];
const MAIN = ["num_inference_steps", "guidance_scale", "true_cfg_scale", "num_images", "num_frames", "fps", "scheduler", "schedule", "shift"];
const ADDED = ["loras", "controlnets", "ip_adapters", "embeddings", "hypernetworks", "upscale", "refiner", "vae"];
const RATIOS = [[1, 1], [4, 3], [3, 2], [16, 9], [3, 4], [2, 3], [9, 16]];
const MAX_ROLLED = 2 ** 32;

export class Form {
  /** `changed` is called after each change. */
  constructor(model, schema, changed) {
    Object.assign(this, { model, schema, changed, controls: new Map(), extra: {} });
    this.node = el("div", { class: "form" });
    this._build();
    this.set({});
  }

  _build() {
    const properties = this.schema.properties;
    const touched = () => this.refresh();
    const make = (name) => {
      const extra = name === "image" && properties.mask_image
        ? button("Paint a mask", () => this.paint(), { class: "small paint" }) : null;
      const control = controlFor(name, properties[name], this.schema, touched, { extra });
      this.controls.set(name, control);
      return control.node;
    };
    const shown = Object.keys(properties).filter((name) => !UNSHOWN.has(name));
    const of = (names) => names.filter((name) => shown.includes(name)).map(make);
    const media = shown.filter((name) => isMedia(name, properties[name]) && !(name === "images" && properties.images.maxItems === 1));
    const prompts = of(FIRST.slice(0, 2));
    const sources = media.map(make);
    const strength = of(FIRST.slice(2));
    const rest = shown.filter((name) => ![...FIRST, ...MAIN, ...ADDED, ...media, "images"].includes(name));
    fill(this.node, prompts,
      sources.length ? el("details", { class: "part", open: !properties.prompt || this.schema.required?.some((name) => media.includes(name)) },
        el("summary", {}, "Images"), el("div", { class: "zones" }, sources), strength) : null,
      properties.width ? this._sizes(touched) : null,
      el("div", { class: "columns" }, of(MAIN), properties.seed ? this._seed(touched) : null),
      this._group("LoRAs and other additions", of(ADDED)),
      this._group("More settings", [...of(rest), properties.output ? this._output(touched) : null]),
      el("p", { class: "problem general", role: "alert", hidden: true }));
  }

  _group(title, nodes) {
    const present = nodes.filter(Boolean);
    return present.length ? el("details", { class: "part" }, el("summary", {}, title), present) : null;
  }

  _sizes(touched) {
    const { width, height } = this.schema.properties;
    const side = (name) => {
      const control = controlFor(name, { ...this.schema.properties[name], description: undefined }, this.schema, touched);
      this.controls.set(name, control);
      return control.node;
    };
    const snap = (value) => Math.max(width.minimum ?? 8, Math.min(width.maximum ?? 8192, Math.round(value / (width.multipleOf ?? 8)) * (width.multipleOf ?? 8)));
    const area = (width.default ?? 1024) * (height.default ?? 1024);
    const presets = RATIOS.map(([wide, high]) => [`${wide}:${high}`, snap(Math.sqrt(area * wide / high)), snap(Math.sqrt(area * high / wide))])
      .filter(([, wide, high], index, all) => all.findIndex((each) => each[1] === wide && each[2] === high) === index);
    const pick = (wide, high) => { this.controls.get("width").set(wide); this.controls.get("height").set(high); touched(); };
    this.presets = presets.map(([name, wide, high]) =>
      button(name, () => pick(wide, high), { class: "chip", "aria-label": `${name}, ${wide} by ${high} pixels`, "data-size": `${wide}x${high}` }));
    const turn = button("Turn", () => pick(this.controls.get("height").get() ?? height.default, this.controls.get("width").get() ?? width.default), { class: "chip" });
    return el("fieldset", { class: "field", "data-field": "size" }, el("legend", {}, "Size"),
      row(this.presets, turn), el("div", { class: "columns" }, side("width"), side("height")),
      el("p", { class: "hint" }, width.description));
  }

  _seed(touched) {
    const control = controlFor("seed", { ...this.schema.properties.seed, description: "Locked, the same seed is used again." }, this.schema, touched);
    this.locked = el("input", { type: "checkbox", id: newId("lock"), onchange: touched });
    const dice = button("Roll", () => { control.set(roll()); touched(); }, { class: "small", "aria-label": "Roll a new seed" });
    control.input.inputMode = "numeric";
    control.input.placeholder = "random";
    control.input.addEventListener("change", () => { if (control.get() !== undefined) this.locked.checked = true; });
    control.input.after(row(dice, el("label", { class: "check" }, this.locked, " Lock")));
    const plain = control.get;
    this.controls.set("seed", {
      ...control,
      get: () => { const text = plain(); return text === undefined ? undefined : Number.isSafeInteger(Number(text)) ? Number(text) : text; },
    });
    return control.node;
  }

  _output(touched) {
    const control = controlFor("output", this.schema.properties.output, this.schema, touched);
    this.controls.set("output", control);
    return control.node;
  }

  /** Roll a new seed, unless it is locked. */
  reroll() {
    if (this.locked && !this.locked.checked) this.controls.get("seed").set(roll());
  }

  /** What was set, as a request. A field that its task does not take is left out. */
  request() {
    const request = { model: this.model, ...this.extra };
    for (const [name, control] of this.controls) {
      const value = control.get();
      if (value !== undefined && !this.untaken.has(name)) request[name] = value;
    }
    return request;
  }

  /** Show this request, and nothing else. */
  set(request) {
    const { model: _, action: __, ...fields } = request;
    if (fields.images && !this.controls.has("images")) { fields.image ??= [fields.images].flat()[0]; delete fields.images; }
    this.extra = Object.fromEntries(Object.entries(fields).filter(([name]) => !this.controls.has(name) && !UNSHOWN.has(name)));
    for (const [name, control] of this.controls) control.set(fields[name]);
    if (this.locked) this.locked.checked = fields.seed !== undefined;
    for (const part of this.node.querySelectorAll("details")) {
      if ([...part.querySelectorAll("[data-field]")].some((field) => fields[field.dataset.field] !== undefined && field.dataset.field !== "output")) part.open = true;
    }
    this.refresh();
  }

  /** Show and hide what the task at hand takes. */
  refresh() {
    this.untaken = new Set();
    const { task, untaken, defaults } = reading(this.schema, this.request());
    this.untaken = new Set([...untaken].filter((name) => !isMedia(name, this.schema.properties[name] ?? {}) && name !== "outpaint"));
    this.task = task;
    for (const [name, control] of this.controls) {
      control.node.hidden = this.untaken.has(name);
      const drawn = name === "width" || name === "height"; // a task's are before its own upscaler, what comes back stands beside
      if (control.setDefault) control.setDefault((drawn ? undefined : defaults[name]) ?? this.schema.properties[name]?.default);
    }
    const painting = this.node.querySelector(".paint");
    if (painting) painting.hidden = !String(this.controls.get("image")?.get() ?? "").startsWith("data:");
    const { width, height } = this.schema.properties;
    if (width) {
      const size = `${this.controls.get("width").get() ?? width.default}x${this.controls.get("height").get() ?? height.default}`;
      for (const chip of this.presets) chip.setAttribute("aria-pressed", String(chip.dataset.size === size));
    }
    this.changed(this);
  }

  async paint() {
    const painted = await openMaskBrush(this.controls.get("image").get(), this.controls.get("mask_image").get());
    if (painted === undefined) return;
    this.controls.get("mask_image").set(painted);
    this.refresh();
    this.controls.get("mask_image").focus();
  }

  clearProblems() {
    for (const shown of this.node.querySelectorAll(".problem")) shown.hidden = true;
    for (const marked of this.node.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  }

  /** Say what the API says, beside the field that it names. */
  showProblem(error) {
    const words = error.hint ? `${error.message} ${error.hint}` : error.message;
    const name = String(error.field ?? "").split(/[.[]/)[0];
    const field = [...this.node.querySelectorAll("[data-field]")].find((each) => each.dataset.field === name && !each.hidden);
    const place = field?.querySelector(":scope > .problem") ?? this.node.querySelector(".general");
    for (let part = field; part && part !== this.node; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    fill(place, words).hidden = false;
    place.setAttribute("role", "alert");
    field?.querySelector("input, select, textarea")?.setAttribute("aria-invalid", "true");
    if (field) this.controls.get(name)?.focus();
    place.scrollIntoView({ block: "nearest" });
  }
}

export const roll = () => crypto.getRandomValues(new Uint32Array(1))[0] % MAX_ROLLED;
export { labelOf };
