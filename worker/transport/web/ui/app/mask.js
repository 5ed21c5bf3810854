// The mask brush: white is redrawn, black stays. With a mouse, a pen, a finger, or the keyboard.

import { button, dialog, el, labelled, row } from "./dom.js";

const UNDOS = 20;

/** Open the brush over `source`. Resolves with the mask as a data: URL, null for none, undefined if it was left as it was. */
export async function openMaskBrush(source, earlier) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const canvas = el("canvas", { width, height, tabindex: "0", class: "brush", role: "application",
    "aria-label": "Mask. Arrow keys move the brush, space paints, Ctrl+Z takes a stroke back." });
  const view = canvas.getContext("2d");
  const mask = el("canvas", { width, height });
  const paint = mask.getContext("2d", { willReadFrequently: true });
  const undo = [];
  let [size, erases, at, last] = [Math.max(4, Math.round(Math.max(width, height) / 10)), false, { x: width / 2, y: height / 2 }, null];

  if (earlier?.startsWith?.("data:")) {
    const before = new Image();
    before.src = earlier;
    await before.decode();
    paint.drawImage(before, 0, 0, width, height);
    clearBlack(paint, width, height);
  }
  const show = () => {
    view.drawImage(image, 0, 0);
    view.globalAlpha = 0.6;
    view.drawImage(mask, 0, 0);
    view.globalAlpha = 1;
    view.lineWidth = Math.max(1, width / 250);
    for (const [color, more] of [["black", 0], ["white", view.lineWidth]]) {
      view.strokeStyle = color;
      view.beginPath();
      view.arc(at.x, at.y, size / 2 + more, 0, 7);
      view.stroke();
    }
  };
  const remember = () => { undo.push(paint.getImageData(0, 0, width, height)); if (undo.length > UNDOS) undo.shift(); };
  const stroke = (from, to) => {
    paint.globalCompositeOperation = erases ? "destination-out" : "source-over";
    paint.strokeStyle = "white";
    Object.assign(paint, { lineWidth: size, lineCap: "round" });
    paint.beginPath();
    paint.moveTo(from.x, from.y);
    paint.lineTo(to.x + 0.01, to.y);
    paint.stroke();
    show();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * width / box.width, y: (event.clientY - box.top) * height / box.height };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    remember();
    at = last = place(event);
    stroke(last, at);
  });
  canvas.addEventListener("pointermove", (event) => {
    at = place(event);
    if (last) { stroke(last, at); last = at; } else show();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { last = null; });
  const takeBack = () => { const before = undo.pop(); if (before) { paint.putImageData(before, 0, 0); show(); } };
  canvas.addEventListener("keydown", (event) => {
    const by = Math.max(1, size / 4);
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    if (event.key === " ") { remember(); stroke(at, at); }
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) takeBack();
    else if (moves[event.key]) {
      const from = at;
      at = { x: Math.min(width, Math.max(0, at.x + moves[event.key][0])), y: Math.min(height, Math.max(0, at.y + moves[event.key][1])) };
      if (event.shiftKey) stroke(from, at); else show();
    } else return;
    event.preventDefault();
  });
  const sizing = el("input", { type: "range", id: "brush-size", min: 1, max: Math.round(Math.max(width, height) / 2), value: String(size), oninput: () => { size = Number(sizing.value); show(); } });
  const eraser = button("Eraser", () => { erases = !erases; eraser.setAttribute("aria-pressed", String(erases)); }, { "aria-pressed": "false", class: "small" });
  const all = (draw) => () => { remember(); paint.globalCompositeOperation = "source-over"; draw(); show(); };
  const invert = all(() => {
    paint.globalCompositeOperation = "xor";
    paint.fillStyle = "white";
    paint.fillRect(0, 0, width, height);
  });
  show();
  return dialog("Paint what is to be redrawn", (close) => el("div", { class: "masking" },
    row(labelled("Brush", sizing), eraser,
      button("Undo", takeBack, { class: "small" }), button("Invert", invert, { class: "small" }),
      button("Clear", all(() => paint.clearRect(0, 0, width, height)), { class: "small" })),
    canvas,
    row(button("Use this mask", () => close(finished(mask, width, height)), { class: "primary" }),
      button("No mask", () => close(null)))), { class: "wide" });
}

/** Make what is black transparent: a mask that was made elsewhere is opaque. */
function clearBlack(paint, width, height) {
  const pixels = paint.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = Math.min(pixels.data[at], pixels.data[at + 3]);
    pixels.data.fill(255, at, at + 3);
  }
  paint.putImageData(pixels, 0, 0);
}

function finished(mask, width, height) {
  const flat = el("canvas", { width, height });
  const paint = flat.getContext("2d");
  paint.fillStyle = "black";
  paint.fillRect(0, 0, width, height);
  paint.drawImage(mask, 0, 0);
  return flat.toDataURL("image/png");
}
