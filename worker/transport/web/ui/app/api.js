// The worker's public HTTP API, as any program would use it. The key goes into a header and never into an address.

import { button, dialog, el, note, row } from "./dom.js";

export const BASE = new URL("../../", import.meta.url);
const KEY = "worker-key";

export const key = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";

function keep(value, lasting, detail) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (value) (lasting ? localStorage : sessionStorage).setItem(KEY, value);
  window.dispatchEvent(new CustomEvent("keychanged", { detail }));
}

/** A refusal in the API's own words. `field` names what in the request is wrong. */
export class Refusal extends Error {
  constructor(status, body, retryAfter = 0) {
    super(body.error ?? `The worker answered ${status}.`);
    Object.assign(this, { status, retryAfter, code: body.code, field: body.field, hint: body.hint, details: body.details });
  }
}

export const wordsOf = (error) => [error.message, error.hint].filter(Boolean).join(" ");

// Seeds may have more digits than a number of JavaScript: such ones stay texts, which the API takes as well.
const exact = (_, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value;
export const parse = (text) => JSON.parse(text, exact);

let asking = null;

/** Ask for a key, once for all who need one now. Resolves with true if one was given; a `waiting` request goes on by itself. */
export function askForKey(why = "", waiting = false) {
  asking ??= dialog("API key", (close) => {
    const input = el("input", { type: "password", id: "key-input", autocomplete: "off", spellcheck: "false", value: key() });
    const lasting = el("input", { type: "checkbox", id: "key-lasting", checked: localStorage.getItem(KEY) !== null });
    const done = (event) => {
      event.preventDefault();
      keep(input.value.trim(), lasting.checked, waiting);
      close(Boolean(input.value.trim()));
    };
    return el("form", { onsubmit: done },
      why ? el("p", { class: "problem", role: "alert" }, why) : null,
      el("label", { for: "key-input" }, "Key of this worker"), input,
      el("label", { class: "check" }, lasting, " Keep it in this browser; otherwise it is forgotten with this tab"),
      row(el("button", { type: "submit", class: "primary" }, "Use this key"),
        button("Forget the key", () => { keep(""); close(false); })),
    );
  }).finally(() => { asking = null; });
  return asking;
}

async function send(path, { method = "GET", body, signal, accept } = {}) {
  const headers = accept ? { Accept: accept } : {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, BASE), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { error: "The worker does not answer; check that it runs and that you are connected.", code: "unreachable" });
  }
}

async function refusal(response) {
  const text = await response.text();
  let body;
  try { body = parse(text); } catch { body = { error: text.slice(0, 300) || undefined }; }
  return new Refusal(response.status, body, Number(response.headers.get("Retry-After")) || 0);
}

/** Ask, and return the JSON of the answer. Asks the person for a key where one is needed. Throws Refusal. */
export async function ask(path, options = {}) {
  const response = await send(path, options);
  if (response.ok) return parse(await response.text());
  const error = await refusal(response);
  if (response.status === 401 && !options.quiet && (await askForKey(key() ? error.message : "", true))) return ask(path, options);
  throw error;
}

export const post = (path, body, options = {}) => ask(path, { method: "POST", body, ...options });
/** Hand a job in: with previews, and with the metadata that lets a saved image be dropped here again. */
export const submit = (request) => post("v2/page/run", { input: { ...request, previews: true, output: { metadata: true, ...request.output } } });
export const status = (id) => ask(`v2/page/status/${encodeURIComponent(id)}`);
export const cancel = (id) => post(`v2/page/cancel/${encodeURIComponent(id)}`);

const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
});

/** Call `heard` with each event of a stream of server-sent events. */
async function readEvents(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    if (!value.includes("\n")) { parts.push(value); continue; } // an image may come in many pieces
    const blocks = (parts.join("") + value).split("\n\n");
    parts = [blocks.pop()];
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trimStart()]);
      const named = (name) => lines.filter(([field]) => field === name).map(([, text]) => text).join("\n");
      if (named("data")) heard(named("event"), parse(named("data")));
    }
  }
}

/** Follow a job to its end, over broken connections too. `told` gets its progress. Returns it as /status shows it. */
export async function follow(id, told, signal) {
  let lost = 0;
  for (;;) {
    let end = null;
    try {
      const response = await send(`events/${encodeURIComponent(id)}`, { signal, accept: "text/event-stream" });
      if (!response.ok) throw await refusal(response);
      lost = 0;
      await readEvents(response, (kind, data) => { if (kind === "progress") told(data); else end = data; });
      if (end) return end;
      const now = await status(id);
      if (!["IN_QUEUE", "IN_PROGRESS"].includes(now.status)) return now;
    } catch (error) {
      if (signal?.aborted || error.status === 404) throw error;
      if (error.status === 401) { if (!(await askForKey(error.message, true))) throw error; }
      else if (error instanceof Refusal && error.status && error.status < 500 && error.status !== 429) throw error;
      lost += 1;
      if (lost === 1) note("The connection was lost; the job goes on, and this page looks for it again.", "bad");
    }
    if (signal?.aborted) return null;
    await pause(Math.min(10000, 500 * 2 ** lost), signal);
  }
}

/** The files of an answer, once each, as they came: base64, or the address or path where they lie. */
export const filesOf = (answer) =>
  answer.images?.length ? answer.images : answer.videos?.length ? answer.videos : [answer.image ?? answer.video].filter(Boolean);

const TYPES = { png: "image/png", jpeg: "image/jpeg", webp: "image/webp", gif: "image/gif", mp4: "video/mp4" };
export const typeOf = (answer) => TYPES[answer.format] ?? "application/octet-stream";

/** True if a file of an answer is an address or a path, and not the file itself. */
export const isElsewhere = (file) => /^https?:\/\//.test(file) || /^[\w.-]+\/.*\.\w{3,4}$/.test(file.slice(0, 300));

export function blobOf(base64, type) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return new Blob([bytes], { type });
}
