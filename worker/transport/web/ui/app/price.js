// What a request will take before it is sent: gigabytes from the worker's plan; seconds and dollars from what it measured.

import { post } from "./api.js";
import { dollars, gigabytes, seconds, table } from "./dom.js";
import { results } from "./store.js";

const PLAN_LIFE_MS = 30000;
const plans = new Map();

/** The plan of a model, asked for at most every half minute. Throws Refusal. */
export function planOf(model) {
  const known = plans.get(model);
  if (known && Date.now() - known.at < PLAN_LIFE_MS) return known.plan;
  const plan = post("plan", { model });
  plans.set(model, { plan, at: Date.now() });
  plan.catch(() => plans.delete(model));
  return plan;
}

/** Ask for plans anew: a job has ended, and memory and pace are others. */
export const forgetPlans = () => plans.clear();

/** The size of a request as work: pixels times steps times images times frames, by what its schema has for left-out ones. */
export function workOf(request, schema) {
  const value = (name, otherwise) => Number(request[name] ?? schema.properties[name]?.default ?? otherwise);
  return value("width", 1024) * value("height", 1024) * value("num_inference_steps", 1) * value("num_images", 1) * Math.max(1, value("num_frames", 1));
}

const workOfAnswer = (answer) => answer.width * answer.height * (answer.num_inference_steps ?? 1) * (answer.usage?.images ?? 1) * Math.max(1, answer.num_frames ?? 1);

/** Seconds and dollars of this much work, by the images of this model that are nearest in size; null without any. */
export async function estimate(model, work) {
  const jobs = new Map();
  for (const result of await results()) if (result.answer?.model === model && result.answer.timings) jobs.set(result.job, result.answer);
  const near = [...jobs.values()].map((answer) => ({ answer, apart: Math.abs(Math.log(workOfAnswer(answer) / work)) }))
    .sort((one, other) => one.apart - other.apart).slice(0, 5);
  if (!near.length) return null;
  const middle = (values) => values.sort((one, other) => one - other)[Math.floor(values.length / 2)];
  const share = (answer) => work / workOfAnswer(answer);
  const priced = near.filter(({ answer }) => typeof answer.usage?.cost_usd === "number");
  return {
    seconds: middle(near.map(({ answer }) => (answer.timings.inference_s + answer.timings.encode_s) * share(answer))),
    usd: priced.length ? middle(priced.map(({ answer }) => answer.usage.cost_usd * share(answer))) : null,
    samples: near.length,
  };
}

/** The same by what the worker measured, where this browser has seen no image of the model. */
function measured(plan, work, schema) {
  if (!plan.measured) return null;
  const scale = schema.properties.upscale?.default?.scale ?? 1; // what its own upscaler enlarges is drawn smaller
  const steps = work / scale ** 2 / 1e6;
  const { s_per_megapixel_step: pace, usd_per_megapixel_step: price } = plan.measured;
  return { seconds: pace * steps, usd: price === null ? null : price * steps };
}

/** A sentence on what `count` jobs of this much work of a form's model take, and what else the plan says. */
export async function priced(form, work, count = 1) {
  const { model, schema } = form;
  const plan = await planOf(model);
  const tier = plan.tiers?.find((each) => each.chosen);
  const known = (await estimate(plan.model ?? model, work)) ?? measured(plan, work, schema);
  const parts = [];
  if (known) parts.push(`about ${seconds(known.seconds * count)}`);
  else if (tier?.expected_s != null) parts.push(`about ${seconds(tier.expected_s * count)}`);
  else parts.push("time not known before its first image");
  const usd = known?.usd ?? tier?.expected_usd;
  if (usd != null) parts.push(dollars(usd * count));
  if (plan.estimated_gb !== undefined) parts.push(`${gigabytes(plan.estimated_gb)} of ${gigabytes(plan.free_gb)} free on ${plan.device}`);
  else if (plan.weight_gb) parts.push(`${gigabytes(plan.weight_gb)} of weights`);
  const problem = plan.fits === false ? plan.reason : null;
  return { text: parts.join(" · "), problem, plan };
}

/** The tiers of a gateway's plan, as a table; null of a lone worker. */
export function tierTable(plan) {
  if (!plan.tiers?.length) return null;
  return table("Where it would be generated", ["Tier", "Fits", "Model is", "To move", "Seconds", "Price", "Why"], plan.tiers.map((tier) => [
    tier.chosen ? `${tier.tier} (chosen)` : tier.tier, tier.fits ? "yes" : "no", tier.model_is ?? "", tier.moved_gb == null ? "" : gigabytes(tier.moved_gb),
    seconds(tier.expected_s), dollars(tier.expected_usd), tier.reason ?? ""]));
}
