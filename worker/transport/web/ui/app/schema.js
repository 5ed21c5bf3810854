// As much of JSON Schema (2020-12) as the schemas of our models use: which task a request is, and what it may hold.

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const kindOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : Number.isInteger(value) ? "integer" : typeof value);

export const resolve = (schema, root) =>
  schema && schema.$ref ? { ...root.$defs[schema.$ref.replace("#/$defs/", "")], ...without(schema, "$ref") } : schema;
const without = (object, name) => Object.fromEntries(Object.entries(object).filter(([each]) => each !== name));

function fitsType(types, value) {
  const kind = kindOf(value);
  return [types].flat().some((type) => type === kind || (type === "number" && kind === "integer"));
}

function fitsObject(schema, value, root) {
  if (kindOf(value) !== "object") return true;
  const parts = Object.entries(schema.properties ?? {});
  return (schema.required ?? []).every((name) => name in value)
    && parts.every(([name, part]) => !(name in value) || fits(part, value[name], root));
}

/** True if `value` fits `schema`; keywords that our rules do not use are passed over. */
export function fits(schema, value, root) {
  if (typeof schema === "boolean") return schema;
  const rule = resolve(schema, root);
  const all = (rules = []) => rules.every((each) => fits(each, value, root));
  const some = (rules) => !rules || rules.some((each) => fits(each, value, root));
  if ("const" in rule && !same(rule.const, value)) return false;
  if (rule.enum && !rule.enum.some((each) => same(each, value))) return false;
  if (rule.type && !fitsType(rule.type, value)) return false;
  if (rule.not && fits(rule.not, value, root)) return false;
  if (Array.isArray(value) && rule.items && !value.every((each) => fits(rule.items, each, root))) return false;
  if (rule.if && !fits((fits(rule.if, value, root) ? rule.then : rule.else) ?? true, value, root)) return false;
  return all(rule.allOf) && some(rule.anyOf) && some(rule.oneOf) && fitsObject(rule, value, root);
}

/** What a request of this schema is: its task, the fields that task does not take, those it needs, and its defaults. */
export function reading(schema, request) {
  const rules = (schema.allOf ?? []).filter((rule) => rule.if && fits(rule.if, request, schema));
  const untaken = new Set();
  const defaults = {};
  let task = null;
  for (const rule of rules) {
    task = rule.$comment ?? task;
    for (const [name, part] of Object.entries(rule.then?.properties ?? {})) {
      if (part.$ref === "#/$defs/left_out") untaken.add(name);
      if ("default" in part) defaults[name] = part.default;
    }
  }
  return { task, untaken, defaults };
}

/** The types of a property, null left out. */
export const typesOf = (property) => [property.type ?? []].flat().filter((type) => type !== "null");

/** The objects that a property may hold, as `{definition, several}`; null if it holds none. */
export function objectsOf(property, root) {
  const options = property.anyOf ?? [property];
  const list = options.find((option) => option.type === "array" && option.items?.$ref);
  const single = options.find((option) => option.$ref);
  if (list) return { definition: resolve(list.items, root), several: true, most: list.maxItems ?? 16 };
  return single ? { definition: resolve(single, root), several: false, most: 1 } : null;
}

const MEDIA = /(^|_)(images?|mask|video)(_|$)/;

/** True if a field holds an image or a video, as its name and its types say. */
export const isMedia = (name, property) =>
  MEDIA.test(name) && typesOf(property).includes("string") && !property.enum && !/prompt/.test(name);
