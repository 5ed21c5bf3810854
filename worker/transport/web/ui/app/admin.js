// For the operator, with an admin key: what runs and what is resident, the queue, the models, and what was used.

import { ask, cancel, post } from "./api.js";
import { bar, button, changes, dollars, el, fill, gigabytes, labelled, note, refill, row, seconds, section, table } from "./dom.js";
import { isUnderWay, jobState, modelInput, regularly, tried } from "./jobs.js";
import { versionsTab } from "./versions.js";

const TABS = { worker: "Worker", queue: "Queue", models: "Models", versions: "Versions", cache: "Cache", usage: "Usage", keys: "Keys", alerts: "Alerts", audit: "Audit log", settings: "Settings" };


function workerTab(place) {
  const facts = el("div", {});
  const model = modelInput("load-model");
  const run = (action, id) => post("run", { action, model: id });
  fill(place, facts, row(labelled("Model", model),
    button("Load", () => tried(async () => { note("Loading…"); await run("preload", model.value || undefined); await look(); }, "It is on the device."))));
  const differs = changes();
  async function look() {
    const health = await ask("health").catch((error) => ({ status: error.message, jobs: {}, resident_models: [] }));
    if (!differs(health)) return;
    const { workers = [] } = await ask("admin/fleet", { quiet: true }).catch(() => ({}));
    const plan = await post("plan", {}).catch(() => null); // of the default model: it knows the device's memory
    refill(facts,
      table("This worker", ["", ""], [["State", health.status], ["Why", health.reason ?? ""], ["Version", health.version ?? ""], ["Does", health.running ?? "nothing"],
        ["Running, queued", `${health.jobs.running ?? 0}, ${health.jobs.queued ?? 0}`], ["GPU", health.gpu_available ? "yes" : "no"],
        ["Memory free", plan?.device ? `${gigabytes(plan.free_gb)} on ${plan.device}` : ""]]),
      table("On the device", ["Model", ""], health.resident_models.map((id) => [id,
        button("Unload", () => tried(async () => { await run("unload", id); await look(); }, `${id} is off the device.`), { class: "small", "aria-label": `Unload ${id}` })])),
      workers.length ? table("Fleet", ["Worker", "Tier", "State", "Running, queued", "Memory", "On its device"], workers.map((each) => [each.worker, each.tier ?? "", each.health,
        `${each.running}, ${each.queued}`, each.memory_gb ? gigabytes(each.memory_gb) : "", each.resident_models.join(", ")])) : null,
      health.processes ? table("Processes", ["Process", "State", "Does", "Resident"], health.processes.map((each) => [String(each.process), each.status, each.running ?? "", each.resident_models.join(", ")])) : null);
  }
  return regularly(look, 2000);
}

function queueTab(place) {
  const list = el("div", {});
  fill(place, row(button("Cancel all that wait", () => tried(async () => {
    if (!window.confirm("Cancel every job that waits, of all callers?")) return;
    const { removed } = await post("v2/page/purge-queue", {});
    note(`${removed} jobs were cancelled.`);
    await look();
  }), { class: "danger" })), list);
  const differs = changes();
  async function look() {
    const { jobs } = await ask("jobs?all=true&limit=200");
    if (!differs(jobs.map((job) => [job.id, job.status, job.progress?.step]))) return;
    refill(list, table("Jobs of all callers", ["Job", "Caller", "Model", "State", "Handed in", ""], jobs.map((job) => [
      job.id, job.caller ?? "", job.model ?? "", jobState(job), `${seconds(job.age_s)} ago`,
      isUnderWay(job) ? button("Cancel", () => tried(async () => { await cancel(job.id); await look(); }), { class: "small", "aria-label": `Cancel ${job.id}` }) : ""])));
  }
  return regularly(look, 2000);
}

function modelsTab(place) {
  const answer = el("div", { "aria-live": "polite" });
  const name = modelInput("ask-model");
  const question = (path) => async () => {
    fill(answer, "Looking…");
    try {
      const facts = await post(path, { model: name.value || undefined });
      fill(answer, table(path === "plan" ? "What it would take" : "What it is, and how that is known", ["", ""],
        Object.entries(facts).filter(([, value]) => value !== null).map(([key, value]) => [key, typeof value === "object" ? JSON.stringify(value, null, 1) : String(value)])));
    } catch (error) {
      fill(answer, el("p", { class: "problem", role: "alert" }, error.message), error.hint ? el("p", { class: "hint" }, error.hint) : null);
    }
  };
  const list = el("div", {});
  fill(place, el("p", {}, "Ask of any model, by id or reference, what it would take here, or why it is refused."),
    row(labelled("Model", name), button("Plan", question("plan")), button("Inspect", question("inspect"))), answer, list);
  tried(async () => {
    const { models } = await ask("models");
    fill(list, table("models.yaml", ["Model", "Tasks", "Family", "From", "Served"], models.map((model) => [
      model.id, model.tasks.join(", "), model.architecture ?? "", model.source, model.served ? "yes" : "not by this version"])));
  });
}

function usageTab(place) {
  const by = el("select", { id: "usage-by", onchange: look }, ["day", "model", "caller"].map((name) => el("option", { value: name }, name)));
  const days = el("input", { type: "number", id: "usage-days", min: 1, max: 3660, value: "30", onchange: look });
  const shown = el("div", {});
  async function look() {
    await tried(async () => {
      const { usage } = await ask(`usage?by=${by.value}&days=${Number(days.value) || 30}`);
      const rows = Object.entries(usage);
      const most = Math.max(...rows.map(([, sums]) => sums.gpu_seconds), 1e-9);
      fill(shown, table(`By ${by.value}`, [by.value, "GPU seconds", "Jobs", "Failed", "Images", "Downloaded", "Cost"], rows.map(([name, sums]) => [
        name, bar(sums.gpu_seconds / most, seconds(sums.gpu_seconds)), String(sums.jobs), String(sums.failed), String(sums.images),
        gigabytes(sums.bytes_downloaded / 2 ** 30), dollars(sums.cost_usd)])));
    });
  }
  fill(place, row(labelled("By", by), labelled("Days", days)), shown);
  look();
}

function cacheTab(place) {
  const model = modelInput("pull-model");
  const list = el("div", {});
  const worker = el("select", { id: "cache-worker", onchange: () => tried(look) });
  const at = (path) => `admin/cache${path}${worker.value && `?worker=${encodeURIComponent(worker.value)}`}`;
  const change = (path, body, done) => () => tried(async () => { await post(at(`/${path}`), body); await look(); }, done);
  const remove = (name) => () => (window.confirm(`Remove ${name} from the volume? The next job that needs it fetches it again.`)
    ? change("remove", { name }, `${name} is removed.`)() : null);
  async function look() {
    const { bytes, max_bytes: most, models } = await ask(at(""));
    const largest = Math.max(...models.map((each) => each.bytes), 1);
    fill(list, el("p", {}, most ? bar(bytes / most, `${gigabytes(bytes / 1e9)} of ${gigabytes(most / 1e9)}`) : `${gigabytes(bytes / 1e9)} in all`),
      models.length ? table("On the volume", ["Model", "Size", "Files", "Last used", "", ""], models.map((each) => [
        each.name, bar(each.bytes / largest, gigabytes(each.bytes / 1e9)), String(each.files), new Date(each.last_used).toLocaleString(),
        button(each.pinned ? "Unpin" : "Pin", change("pin", { name: each.name, pinned: !each.pinned }), { class: "small", "aria-label": `${each.pinned ? "Unpin" : "Pin"} ${each.name}` }),
        button("Remove", remove(each.name), { class: "small danger", "aria-label": `Remove ${each.name}` })])) : el("p", { class: "empty" }, "Nothing was downloaded."));
  }
  const pull = button("Pull", () => tried(async () => {
    pull.disabled = true;
    note("Fetching; this may take minutes.");
    try { await post(at("/pull"), { model: model.value }); await look(); } finally { pull.disabled = false; }
  }, "It is on the volume."));
  fill(place, row(labelled("Model", model), pull), list);
  tried(async () => {
    const held = (await ask("admin/fleet")).workers.filter((each) => each.has_cache);
    fill(worker, held.map((each) => el("option", {}, each.worker)));
    if (held.length) place.prepend(row(labelled("Worker", worker)));
    await look();
  });
}

function auditTab(place) {
  const shown = el("div", {});
  const search = el("input", { type: "search", id: "audit-search", oninput: () => show() });
  let lines = [];
  const show = () => {
    const words = search.value.toLowerCase();
    fill(shown, table("Operations of all callers, the newest first", ["When", "Caller", "Action", "Outcome", "Model", "Seconds", "Cost", "Job"],
      lines.filter((line) => JSON.stringify(line).toLowerCase().includes(words)).map((line) => [
        new Date(line.at).toLocaleString(), line.caller ?? "", line.action, line.outcome, line.model ?? "", seconds(line.seconds ?? 0),
        dollars(line.cost_usd), line.job_id ?? ""])));
  };
  fill(place, row(labelled("Search", search)), shown);
  tried(async () => { lines = (await ask("admin/audit?limit=500&days=30")).operations; show(); });
}

function alertsTab(place) {
  const differs = changes();
  return regularly(async () => {
    const { alerts } = await ask("admin/alerts");
    if (!differs(alerts.map((each) => [each.process, each.name, each.state, each.value]))) return;
    const number = (value) => (value == null ? "" : String(Number(value.toPrecision(4))));
    refill(place, alerts.length ? table("Alerts, of the rules in ALERTS", ["Alert", "State", "Measure", "Value", "Bound", "For"], alerts.map((each) => [
      each.process ? `${each.name} (process ${each.process})` : each.name, each.state, each.model ? `${each.measure} of ${each.model}` : each.measure, number(each.value),
      each.above == null ? `below ${number(each.below)}` : `above ${number(each.above)}`, seconds(each.since_s)]))
      : el("p", { class: "empty" }, "No rules: ALERTS names no file."));
  }, 5000);
}

function keysTab(place) {
  tried(async () => {
    const { keys } = await ask("admin/keys");
    fill(place, table("Keys by their names; no key is kept here", ["Name", "Admin", "Models", "Weight"], keys.map((each) => [
      each.name, each.admin ? "yes" : "", each.models?.join(", ") ?? "all", String(each.weight)])));
  });
}

function settingsTab(place) {
  tried(async () => {
    const { settings } = await ask("admin/settings");
    fill(place, table("Settings, as this process read them; of a secret only whether it is set", ["Variable", "Value"],
      Object.entries(settings).map(([name, value]) => [name, value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value)])));
  });
}

export function adminPage(page, tab = "worker") {
  const place = el("div", {});
  const views = { worker: workerTab, queue: queueTab, models: modelsTab, versions: versionsTab, cache: cacheTab, usage: usageTab, keys: keysTab, alerts: alertsTab, audit: auditTab, settings: settingsTab };
  const leave = (views[tab] ?? workerTab)(place) ?? (() => {});
  return {
    node: section("Admin",
      el("nav", { class: "tabs", "aria-label": "Admin" }, Object.entries(TABS).map(([name, title]) => el("a", { href: `#admin/${name}`, "aria-current": name === tab ? "page" : null }, title))), place),
    leave,
  };
}
