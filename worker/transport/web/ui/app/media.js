// Images and videos that come in: from a file, a drop, the clipboard or an address. And what our own files say of themselves.

import { button, el, fill, newId, note } from "./dom.js";

export const toDataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

/** The pixels of an image: `{width, height}`. */
export async function sizeOf(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return { width: image.naturalWidth, height: image.naturalHeight };
}

export const isVideo = (source) => /^data:video\/|\.mp4($|\?)/.test(source);

/** A picture of a source that the person sent; of an address its text, since this page loads nothing from elsewhere. */
function shown(source, label) {
  if (!source.startsWith("data:")) return el("span", { class: "address" }, source);
  if (isVideo(source)) return el("video", { src: source, muted: true, "aria-label": label });
  return el("img", { src: source, alt: label });
}

/**
 * A place for images: `get()` is the one source, or a list of several and wherever `listed`. `changed` is called after each change.
 */
export function mediaField({ label, most = 1, listed = false, video = false, changed, extra = null, describedby = null }) {
  let sources = [];
  const id = newId("media");
  const list = el("ul", { class: "thumbs" });
  const input = el("input", {
    type: "file", id, class: "file", accept: video ? "video/mp4,image/*" : "image/*", multiple: most > 1, "aria-describedby": describedby,
    onchange: () => { take([...input.files]); input.value = ""; },
  });
  const zone = el("div", { class: "zone" }, el("label", { for: id }, label),
    input, el("span", { class: "hint" }, "Choose, drop or paste; or ", button("name an address", address, { class: "link" })),
    list, extra);

  const show = () => {
    zone.classList.toggle("full", sources.length > 0);
    fill(list, sources.map((source, index) => el("li", {},
      shown(source, `${label} ${most > 1 ? index + 1 : ""}`),
      button("Remove", () => { sources.splice(index, 1); show(); changed(); }, { class: "small", "aria-label": `Remove ${label} ${index + 1}` }))));
  };
  const add = (source) => {
    sources = most > 1 ? [...sources, source].slice(-most) : [source];
    show();
    changed();
  };
  async function take(files) {
    for (const file of files) {
      if (!/^(image|video)\//.test(file.type)) note(`${file.name} is neither an image nor a video.`, "bad");
      else add(await toDataUrl(file));
    }
  }
  function address() {
    const typed = window.prompt("The https address of an image, which the worker fetches");
    if (typed) add(typed.trim());
  }
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      zone.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
  }
  zone.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); take(files); }
  });
  return {
    node: zone,
    get: () => (sources.length > 1 || (sources.length && listed) ? [...sources] : sources[0]),
    set: (value) => { sources = value === undefined || value === null ? [] : [value].flat().filter((each) => typeof each === "string").map(withType); show(); },
    focus: () => input.focus(),
  };
}

/** Base64 as a data: URL, which can be shown; anything else as it is. */
function withType(source) {
  if (/^(data:|https?:)/.test(source)) return source;
  const kinds = { iVBOR: "image/png", "/9j/": "image/jpeg", UklGR: "image/webp", R0lGO: "image/gif" };
  const kind = Object.entries(kinds).find(([start]) => source.startsWith(start));
  return kind ? `data:${kind[1]};base64,${source}` : source;
}

const utf8 = new TextDecoder();
const latin1 = new TextDecoder("latin1");

async function inflate(bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
}

/** The text chunks of a PNG, by their keywords. */
async function pngTexts(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const texts = {};
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const zero = data.indexOf(0);
    const keyword = latin1.decode(data.subarray(0, Math.max(0, zero)));
    if (kind === "tEXt") texts[keyword] = latin1.decode(data.subarray(zero + 1));
    if (kind === "zTXt") texts[keyword] = latin1.decode(await inflate(data.subarray(zero + 2)));
    if (kind === "iTXt") {
      const packed = data[zero + 1] === 1;
      let rest = data.subarray(zero + 3);
      for (let skipped = 0; skipped < 2; skipped += 1) rest = rest.subarray(rest.indexOf(0) + 1);
      texts[keyword] = utf8.decode(packed ? await inflate(rest) : rest);
    }
    at += 12 + length;
  }
  return texts;
}

/** The ImageDescription of EXIF that begins at `start`; null without one. */
function description(bytes, start) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.length - start);
  const little = view.getUint16(0) === 0x4949;
  const ifd = view.getUint32(4, little);
  for (let entry = 0; entry < view.getUint16(ifd, little); entry += 1) {
    const at = ifd + 2 + 12 * entry;
    if (view.getUint16(at, little) !== 0x010e) continue;
    const length = view.getUint32(at + 4, little);
    const from = start + (length > 4 ? view.getUint32(at + 8, little) : at + 8);
    return utf8.decode(bytes.subarray(from, from + length)).replace(/\0+$/, "");
  }
  return null;
}

/** Find EXIF: behind its name in a JPEG, in a chunk of its own in a WebP. */
function exif(bytes) {
  const head = latin1.decode(bytes.subarray(0, Math.min(bytes.length, 65536)));
  const named = head.indexOf("Exif\0\0");
  if (named > 0) return description(bytes, named + 6);
  const whole = latin1.decode(bytes);
  const chunk = whole.startsWith("RIFF") ? whole.lastIndexOf("EXIF") : -1;
  return chunk > 0 ? description(bytes, chunk + 8) : null;
}

/** The request that made this file, if it is one of ours that tells: `{input, model, versions}`; else null. */
export async function requestIn(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    const told = bytes[0] === 0x89 ? (await pngTexts(bytes)).generation : exif(bytes);
    const facts = told ? JSON.parse(told) : null;
    return facts && typeof facts.input === "object" ? facts : null;
  } catch {
    return null; // another program's, or cut off
  }
}
