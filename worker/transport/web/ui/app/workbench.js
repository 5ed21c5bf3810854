// The place to generate: choose a model, fill its form, see what it takes, press, and follow the job.

import { ask, submit } from "./api.js";
import { button, el, fill, labelled, newId, note, row } from "./dom.js";
import { Form, roll } from "./form.js";
import { gridPart } from "./grid.js";
import { copyAs, JobCard } from "./job.js";
import { requestIn } from "./media.js";
import { forgetPlans, priced, tierTable, workOf } from "./price.js";
import { put } from "./store.js";

const DRAFT = "draft";

export class Workbench {
  constructor(page) {
    this.page = page;
    this.schemas = new Map();
    this.card = new JobCard(this, (id, error) => this.failed(id, error));
    this._build();
    window.addEventListener("jobended", () => { forgetPlans(); if (this.form) this.tellPrice(this.form); });
  }

  _build() {
    const id = newId("model");
    this.select = el("select", { id, onchange: () => this.choose(this.select.value, this.form?.request() ?? {}) });
    this.about = el("p", { class: "hint" });
    this.place = el("div", {}, el("p", { class: "lead" }, "Loading the models…"));
    this.price = el("div", { class: "price", "aria-live": "polite" });
    this.go = el("button", { type: "submit", class: "primary" }, "Generate");
    const load = el("input", { type: "file", accept: "image/*", class: "file", id: newId("replay"), onchange: () => { this.replay(load.files[0]); load.value = ""; } });
    this.formNode = el("form", { class: "card", "aria-label": "Request", novalidate: true,
      onsubmit: (event) => { event.preventDefault(); this.press(); },
      onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.press(); } } },
    el("div", { class: "field", "data-field": "model" }, labelled("Model", this.select), this.about),
    this.place,
    el("div", { class: "bar-bottom" }, this.price, row(this.go,
      button("Copy as…", () => this.form && copyAs(this.form.request()), { class: "quiet" }),
      el("label", { for: load.id, class: "button quiet" }, "From an image"), load,
      button("Clear", () => { this.form?.set({}); this.card.clear(); this.page.address("create"); }, { class: "quiet" }))));
    this.grid = el("div", {});
    this.references = el("datalist", { id: "references" });
    this.node = el("div", { class: "bench" }, el("div", {}, this.formNode, this.references), el("div", { class: "right" }, this.card.node, this.grid));
  }

  /** Load the models, and the first form; one that is there stays while its model does. Throws Refusal. */
  async start() {
    const { models } = await ask("models");
    this.models = models;
    const option = (model) => el("option", { value: model.id, disabled: !model.served }, model.served ? model.id : `${model.id} (not served by this version)`);
    fill(this.select, models.map(option));
    fill(this.references, models.map((model) => el("option", { value: model.id })));
    if (this.form && this.schemas.has(this.form.model) && models.some((model) => model.id === this.form.model)) {
      this.select.value = this.form.model;
      return this.place.contains(this.form.node) || fill(this.place, this.form.node);
    }
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    const first = models.find((model) => model.id === draft?.model) ?? models.find((model) => model.served);
    if (!first) return fill(this.place, el("p", { class: "problem" }, "models.yaml has no model that this version serves."));
    return this.choose(first.id, draft ?? {});
  }

  /** Show the form of this model with as much of `request` as it takes. */
  async choose(model, request = {}) {
    this.wanted = model;
    if (![...this.select.options].some((option) => option.value === model)) this.select.append(el("option", { value: model }, model));
    this.select.value = model;
    fill(this.about, this.models?.find((each) => each.id === model)?.description ?? "");
    try {
      if (!this.schemas.has(model)) {
        this.form = null; // nobody presses for the model before, under this one's name
        fill(this.place, el("p", { class: "lead" }, "Loading the form…"));
        this.schemas.set(model, await ask(`models/${model.split("/").map(encodeURIComponent).join("/")}/schema`));
      }
    } catch (error) {
      if (this.wanted !== model) return;
      fill(this.place, el("p", { class: "problem", role: "alert" }, error.message), error.hint ? el("p", { class: "hint" }, error.hint) : null);
      this.form = null;
      fill(this.price);
      return;
    }
    if (this.wanted !== model) return; // another one was chosen meanwhile
    const schema = this.schemas.get(model);
    const taken = Object.fromEntries(Object.entries(request).filter(([name]) => name in schema.properties));
    this.form = new Form(model, schema, (form) => this.changed(form));
    this.form.set(taken);
    fill(this.place, this.form.node);
    fill(this.grid, gridPart(this.form, this.page));
  }

  changed(form) {
    const request = form.request();
    const kept = Object.fromEntries(Object.entries(request).filter(([, value]) => JSON.stringify(value).length < 4000));
    sessionStorage.setItem(DRAFT, JSON.stringify(kept));
    clearTimeout(this.pricing);
    this.pricing = setTimeout(() => this.tellPrice(form), 300);
  }

  async tellPrice(form) {
    if (form !== this.form) return;
    try {
      const request = form.request();
      const { text, problem, plan } = await priced(form, workOf(request, form.schema));
      if (form !== this.form) return;
      const tiers = tierTable(plan);
      fill(this.price, el("p", { class: "cost" }, text), problem ? el("p", { class: "problem" }, problem) : null,
        tiers ? el("details", { class: "part" }, el("summary", {}, "Fleet"), tiers) : null);
    } catch (error) {
      fill(this.price, el("p", { class: "problem" }, error.message));
    }
  }

  /** Send what the form says. */
  async press() {
    const { form } = this;
    if (!form || this.go.disabled) return;
    form.clearProblems();
    form.reroll();
    await this.send(form.request(), (error) => form.showProblem(error));
  }

  /** Hand a request in, keep it, and follow its job. */
  async send(request, refused = (error) => note(error.message, "bad")) {
    this.go.disabled = true;
    this.card.wait("Handing the job in…");
    try {
      const { id } = await submit(request);
      await put("requests", { job: id, input: request, at: Date.now() });
      this.page.address(`job/${id}`);
      this.card.show(id);
      if (this.formNode.getBoundingClientRect().bottom <= this.card.node.getBoundingClientRect().top) this.card.node.scrollIntoView(); // a phone
    } catch (error) {
      this.card.clear();
      refused(error);
    } finally {
      this.go.disabled = false;
    }
  }

  /** A job failed: its words belong beside the field that they are about, if the form still shows its request. */
  failed(id, error) {
    if (this.form && this.card.id === id) this.form.showProblem(error);
  }

  /** Fill the form with this request. */
  async show(request) {
    const { model = this.select.value, ...fields } = request;
    const known = this.models?.find((each) => each.id === model || each.aliases?.includes(model));
    await this.choose(known?.id ?? model, fields);
    if (this.form) this.form.set(fields);
    this.page.go("create");
    this.formNode.querySelector("textarea, input")?.focus();
  }

  async vary(request, source) {
    const { image, images, mask_image, ...rest } = request;
    const schema = this.schemas.get(request.model) ?? null;
    const redraws = source && (schema?.properties.strength !== undefined);
    const varied = redraws ? { ...rest, image: source, strength: 0.6, seed: roll() } : { ...request, seed: roll() };
    await this.show(varied);
    await this.press();
  }

  async upscale(source) {
    const upscaler = this.models?.find((model) => model.served && model.tasks.includes("upscaling"));
    if (!upscaler) return note("No model of this worker enlarges images.", "bad");
    return this.show({ model: upscaler.id, image: source });
  }

  async useAsInput(source) {
    const request = this.form?.request() ?? {};
    const takes = (schema) => schema && ("image" in schema.properties || "images" in schema.properties);
    if (!takes(this.form?.schema)) {
      const other = this.models?.find((model) => model.served && model.tasks.some((task) => /image-to|editing|inpainting/.test(task)));
      if (!other) return note("No model of this worker takes an image.", "bad");
      request.model = other.id;
    }
    return this.show({ ...request, mask_image: undefined, image: source });
  }

  compare(result) { this.page.compare(result); }

  /** Have the exact request back of an image that was dropped. */
  async replay(file) {
    const facts = file ? await requestIn(file) : null;
    if (!facts) return note("This image does not tell how it was made; only images of this worker with metadata do.", "bad");
    await this.show(facts.input);
    return note("The image's own request is in the form.");
  }

  leave() {}
}
