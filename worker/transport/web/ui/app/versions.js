// For the operator: the versions of each model, which one is served, how they compare, and the way back.

import { ask, post } from "./api.js";
import { button, changes, dollars, el, fill, gigabytes, labelled, note, refill, row, seconds, table } from "./dom.js";
import { modelInput, regularly, tried } from "./jobs.js";
import { choosePairs, interval, pairsTable, percent } from "./pairs.js";

const when = (at) => new Date(at).toLocaleString();
const shares = (arms) => Object.entries(arms).map(([arm, share]) => `${arm} ${share}`).join(", ");

function said(change) {
  if (change.kind === "version") return "another version";
  if (change.kind === "alias") return `@${change.alias}: ${change.from ?? "none"} → ${change.to}`;
  if (change.halted) return `split halted: ${change.halted}`;
  return Object.keys(change.arms).length ? `split ${shares(change.arms)}` : "split ended";
}

export function versionsTab(place) {
  const model = modelInput("version-model", { onchange: () => tried(look) });
  const why = el("input", { type: "text", id: "version-why", maxlength: 500, autocomplete: "off" });
  const share = el("input", { type: "number", id: "version-share", min: 1, max: 99, value: "10" });
  const paired = el("input", { type: "number", id: "version-paired", min: 0, max: 100, value: "0" });
  const shown = el("div", { "aria-live": "polite" });
  const report = el("div", {});
  const about = (body) => ({ ...body, model: body.model ?? model.value, why: why.value });

  const change = (path, body, done) => () => tried(async () => {
    await post(`admin/versions/${path}`, about(body));
    why.value = "";
    note(done);
    await look();
  });

  function rowsOf(each) {
    return each.versions.toReversed().map((version) => [
      each.model, version.version, version.aliases.map((alias) => `@${alias}`).join(" "), when(version.at), version.source, version.loras.join(", "),
      gigabytes(version.bytes / 1e9), version.why,
      version.aliases.includes("stable") ? "serves" : button("Make stable", change("promote", { model: each.model, version: version.version }, `${each.model} is served by ${version.version}.`),
        { class: "small", "aria-label": `Make ${each.model} ${version.version} stable` }),
      version.aliases.includes("candidate") ? "" : button("Make candidate", change("promote", { model: each.model, version: version.version, alias: "candidate" }, `${version.version} is the candidate of ${each.model}.`),
        { class: "small", "aria-label": `Make ${each.model} ${version.version} the candidate` }),
    ]);
  }

  function facts(each) {
    const lines = [];
    if (each.rollback_to) lines.push(button(`Roll ${each.model} back to ${each.rollback_to}`, change("rollback", { model: each.model }, `${each.model} is served by ${each.rollback_to} again.`), { class: "danger" }));
    if (Object.keys(each.arms).length) lines.push(`${each.model} is split: ${shares(each.arms)}${each.paired ? `; ${each.paired} % by both` : ""} `, button(`End the split of ${each.model}`, change("split", { model: each.model }, "The split is ended.")));
    if (each.entry === null && each.versions.length) lines.push(el("span", { class: "hint" }, `${each.model} in models.yaml is no version yet.`));
    return row(lines);
  }

  const differs = changes();
  async function look() {
    const query = model.value ? `?model=${encodeURIComponent(model.value)}` : "";
    const [{ models }, { changes: history }] = await Promise.all([ask(`admin/versions${query}`), ask(`admin/versions/history${query}`)]);
    if (!differs([models, history])) return;
    refill(shown, models.some((each) => each.versions.length)
      ? [models.map(facts), table("Versions", ["Model", "Version", "Names", "Since", "Source", "LoRAs", "Size", "Why", "", ""], models.flatMap(rowsOf))]
      : el("p", { class: "empty" }, "No model has a version yet. Name one above, and make its entry in models.yaml the first."),
    history.length ? table("History, the newest first", ["When", "Model", "What", "Who", "Why"], history.map((each) => [when(each.at), each.model, said(each), each.who, each.why])) : null);
  }

  const compare = () => tried(async () => {
    const { versions, pairs, since } = await ask(`admin/versions/report?model=${encodeURIComponent(model.value)}`);
    fill(report, table(`Jobs since ${since}`, ["Version", "Arm", "Jobs", "Failed", "Errors, 95 %", "Half within", "95 % within", "Inference, 95 %", "Per image"], versions.map((row) => [
      row.version, row.arm ?? "", String(row.jobs), String(row.failed), interval(row.error_rate, percent), seconds(row.seconds_p50),
      seconds(row.seconds_p95), interval(row.inference_s, seconds), dollars(row.cost_per_image)])), pairsTable(pairs));
  });

  const golden = (version) => () => tried(async () => {
    note("Both versions generate the golden prompts; the page waits for them.");
    const answer = await post("run", { action: "golden", model: model.value, ...version });
    fill(report, table(`${answer.old} on the left, ${answer.new} on the right`, ["Prompt", "Seed", "Distance", "Seconds", "Images"], answer.prompts.map((each) => [
      each.prompt, String(each.seed), each.distance.toFixed(4), `${seconds(each.old_s)}, ${seconds(each.new_s)}`, el("img", { src: `data:image/${answer.format};base64,${each.image}`, alt: `${each.prompt}, by both` })])));
  });

  fill(place,
    row(labelled("Model", model), labelled("Why", why)),
    row(
      button("Serve the entry of models.yaml", change("promote", { version: "entry" }, "The entry is served.")),
      button("Make the entry the candidate", change("promote", { version: "entry", alias: "candidate" }, "The entry is the candidate.")),
      labelled("Share of the candidate, %", share),
      el("span", { class: "row" }, labelled("Generated by both, %", paired)),
      button("Split", () => change("split", { arms: { stable: 100 - Number(share.value), candidate: Number(share.value) }, paired: Number(paired.value) }, "The requests are split.")()),
      button("Compare", compare), button("Choose between pairs", () => (model.value ? choosePairs(model.value) : note("Name a model above.", "bad"))),
      button("Golden prompts by the candidate", golden({ version: "candidate" })), button("Golden prompts by the newest", golden({}))),
    report, shown);
  return regularly(look, 2000);
}
