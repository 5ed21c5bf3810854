// One control for each field of a model's schema. All have `node`, `get()` (undefined says nothing), `set(value)` and `focus()`.

import { button, el, fill, newId } from "./dom.js";
import { mediaField } from "./media.js";
import { isMedia, objectsOf, resolve, typesOf } from "./schema.js";

const NAMES = {
  num_inference_steps: "Steps", guidance_scale: "Guidance", true_cfg_scale: "True guidance", num_images: "Images", mask_image: "Mask",
  scheduler: "Sampler", schedule: "Schedule of the steps", fps: "Frames a second", num_frames: "Frames", loras: "LoRAs", vae: "VAE",
  ip_adapters: "IP-Adapters", controlnets: "ControlNets", images: "Reference images", weight_name: "File", eta: "Eta", prompt_2: "Second prompt",
};
export const labelOf = (name) => NAMES[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

const short = (value) => (value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));

/** A field: its label, its control, its description and a place for what the API says of it. */
function framed(name, label, inner, description, { id, group = false } = {}) {
  const error = el("p", { class: "problem", id: `${id}-error`, hidden: true });
  const hint = description ? el("p", { class: "hint", id: `${id}-hint` }, description) : null;
  const title = group ? el("legend", {}, label) : label ? el("label", { for: id }, label) : null;
  return el(group ? "fieldset" : "div", { class: "field", "data-field": name }, title, inner, error, hint);
}

const described = (id, description) => `${description ? `${id}-hint ` : ""}${id}-error`;

/** The steps of a slider over this span: round ones. */
const strideOf = (span) => (span <= 1 ? 0.01 : span <= 5 ? 0.05 : span <= 50 ? 0.1 : 1);

/** A number, and a slider beside it where the bounds make one useful. */
function numberControl(name, property, changed, label = labelOf(name)) {
  const id = newId(name);
  const whole = typesOf(property).includes("integer");
  const { minimum: least, maximum: most } = property;
  const step = property.multipleOf ?? (whole ? 1 : "any");
  const input = el("input", {
    id, type: "number", inputmode: whole ? "numeric" : "decimal", min: least, max: most, step, placeholder: short(property.default),
    "aria-describedby": described(id, property.description),
  });
  const slides = least !== undefined && most !== undefined && most - least <= 400;
  const range = slides ? el("input", { type: "range", min: least, max: most, step: whole ? step : strideOf(most - least), "aria-label": `${label}, slider`, tabindex: "-1" }) : null;
  const follow = () => { if (range) range.value = input.value === "" ? short(property.default ?? least) : input.value; };
  input.addEventListener("input", () => { follow(); changed(); });
  range?.addEventListener("input", () => { input.value = String(Math.round(range.value * 1000) / 1000); changed(); });
  follow();
  return {
    name, input,
    node: framed(name, label, el("div", { class: "pair" }, input, range), property.description, { id }),
    get: () => (input.value === "" ? undefined : Number(input.value)),
    set: (value) => { input.value = short(value); follow(); },
    setDefault: (value) => { input.placeholder = short(value); },
    focus: () => input.focus(),
  };
}

function textControl(name, property, changed, { long = false, list = null } = {}) {
  const id = newId(name);
  const attributes = {
    id, placeholder: short(property.default), maxlength: property.maxLength, "aria-describedby": described(id, property.description), oninput: changed,
    list, spellcheck: long ? null : "false", autocomplete: "off",
  };
  const input = long ? el("textarea", { ...attributes, rows: name === "prompt" ? 3 : 2 }) : el("input", { type: "text", ...attributes });
  return {
    name, input,
    node: framed(name, labelOf(name), input, property.description, { id }),
    get: () => (input.value === "" ? undefined : input.value),
    set: (value) => { input.value = short(value); },
    focus: () => input.focus(),
  };
}

/** A choice; nothing chosen says nothing. Values keep their types. */
function choiceControl(name, property, values, changed, words = short) {
  const id = newId(name);
  const blank = property.default === undefined ? "The model's own" : `Default: ${short(property.default)}`;
  const option = (value) => el("option", { value: JSON.stringify(value) }, words(value));
  const plain = values.filter((value) => !/Scheduler$/.test(value));
  const classes = values.filter((value) => /Scheduler$/.test(value));
  const select = el("select", { id, "aria-describedby": described(id, property.description), onchange: changed },
    el("option", { value: "" }, blank), plain.map(option),
    classes.length ? el("optgroup", { label: "Classes of diffusers" }, classes.map(option)) : null);
  return {
    name, input: select,
    node: framed(name, labelOf(name), select, property.description, { id }),
    get: () => (select.value === "" ? undefined : JSON.parse(select.value)),
    set: (value) => {
      const wanted = value === undefined || value === null ? "" : JSON.stringify(value);
      if (wanted && ![...select.options].some((each) => each.value === wanted)) select.append(option(value));
      select.value = wanted;
    },
    focus: () => select.focus(),
  };
}

function jsonControl(name, property, changed) {
  const control = textControl(name, { ...property, maxLength: undefined }, changed, { long: true });
  control.input.placeholder = `${short(property.default) || "JSON"}`;
  const read = () => { try { return JSON.parse(control.input.value); } catch { return control.input.value; } };
  return { ...control, get: () => (control.input.value.trim() === "" ? undefined : read()) };
}

function mediaControl(name, property, changed, extra) {
  const id = newId(name);
  const most = typesOf(property).includes("array") && property.maxItems > 1 ? Math.min(property.maxItems, 16) : 1;
  const field = mediaField({ label: labelOf(name), most, listed: most > 1 && /s$/.test(name), video: /video/.test(name), changed, extra, describedby: `${id}-error` });
  return { name, ...field, node: framed(name, null, field.node, null, { id }) };
}

/** The keys of an object, as controls in a row. */
function objectRow(definition, root, changed, prefix) {
  const parts = Object.entries(definition.properties).map(([name, property]) =>
    controlFor(name, narrowed(name, resolve(property, root)), root, changed, { inRow: prefix }));
  return {
    node: parts.map((part) => part.node),
    get: () => {
      const value = Object.fromEntries(parts.map((part) => [part.name, part.get()]).filter(([, each]) => each !== undefined));
      return Object.keys(value).length ? value : undefined;
    },
    set: (value) => {
      const given = typeof value === "string" ? { model: value } : value;
      for (const part of parts) part.set(given?.[part.name]);
    },
    focus: () => parts[0]?.focus(),
  };
}

// A slider over -10 to 10 is of no use for a weight that is mostly between 0 and 2; the API's bounds still hold for what is typed.
const narrowed = (name, property) => (name === "weight" ? { ...property, minimum: -2, maximum: 2 } : property);

/** Rows of objects, each with a button to take it away: LoRAs, ControlNets and their kin. */
function rowsControl(name, property, root, changed) {
  const { definition, several, most } = objectsOf(property, root);
  const id = newId(name);
  const rows = [];
  const list = el("ol", { class: "rows" });
  const singular = labelOf(name).replace(/s$/, "");
  const adder = button(several ? `Add ${singular}` : `Set ${singular}`, () => { add(); rows.at(-1).focus(); }, { class: "small" });
  const show = () => { fill(list, rows.map((row) => row.item)); adder.hidden = rows.length >= most; };
  function add(value) {
    const row = objectRow(definition, root, changed, name);
    if (value !== undefined) row.set(value);
    const drop = button("Remove", () => { rows.splice(rows.indexOf(row), 1); show(); changed(); adder.focus(); }, { class: "small", "aria-label": `Remove ${singular}` });
    row.item = el("li", {}, row.node, drop);
    rows.push(row);
    show();
  }
  const off = property.anyOf?.some((option) => option.const === false)
    ? el("input", { type: "checkbox", onchange: () => { list.hidden = off.checked; changed(); } }) : null;
  const inner = [off ? el("label", { class: "check" }, off, ` No ${singular.toLowerCase()}, even if the model has one of its own`) : null, list, adder];
  const text = `${property.description ?? ""}${property.default ? ` By default: ${short(property.default)}` : ""}`;
  return {
    name,
    node: framed(name, labelOf(name), inner, text, { id, group: true }),
    get: () => {
      if (off?.checked) return false;
      const values = rows.map((row) => row.get()).filter((value) => value !== undefined);
      return values.length ? (several ? values : values[0]) : undefined;
    },
    set: (value) => {
      rows.length = 0;
      show();
      if (off) { off.checked = value === false; list.hidden = off.checked; }
      for (const each of value ? [value].flat() : []) add(each);
    },
    focus: () => (rows[0] ? rows[0].focus() : adder.focus()),
  };
}

/** The control for a field of a schema. */
export function controlFor(name, property, root, changed, { inRow = null, extra = null } = {}) {
  const types = typesOf(property);
  if (isMedia(name, property)) return mediaControl(name, property, changed, extra);
  if (objectsOf(property, root)) return rowsControl(name, property, root, changed);
  const values = (property.enum ?? []).filter((value) => value !== null);
  if (values.length) return choiceControl(name, property, values, changed);
  if (types.includes("boolean")) return choiceControl(name, property, [true, false], changed, (value) => (value ? "Yes" : "No"));
  if (name === "seed") return textControl(name, property, changed);
  if (types.includes("number") || types.includes("integer")) return numberControl(name, property, changed);
  if (["scheduler", "schedule"].includes(name) && property.examples) return choiceControl(name, property, property.examples, changed);
  if (types.includes("string")) return textControl(name, property, changed, { long: /prompt/.test(name), list: inRow && name === "model" ? "references" : null });
  return jsonControl(name, property, changed);
}
