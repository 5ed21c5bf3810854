// Blind choices for the operator: two images of one prompt and seed, in random order and without their versions.

import { ask, post } from "./api.js";
import { button, dialog, dollars, el, fill, note, seconds, table } from "./dom.js";

const KEYS = ["1", "2", "0"]; // of the buttons, in their order
export const interval = (value, say) => (value ? `${say(value.value)} (${say(value.low)} to ${say(value.high)})` : "");
export const percent = (value) => `${(value * 100).toFixed(1)} %`;

/** Show one pair after the other until none waits, or the dialog is closed. */
export const choosePairs = (model) => dialog(`Which image of ${model} is better?`, () => {
  const place = el("div", { "aria-live": "polite" });
  let shown = null;
  const show = (answer) => {
    shown = answer.pair;
    if (!shown) return fill(place, el("p", { class: "empty" }, "No pair waits for a choice. Images of pairs are kept where the operator sets PAIRED_IMAGES_MB."));
    const side = (name, key) => el("figure", {}, el("img", { src: `data:image/${answer.format};base64,${answer[name]}`, alt: `The ${name} image` }),
      el("figcaption", {}, button(`${name === "left" ? "Left" : "Right"} (${key})`, () => choose(name), { class: "primary" })));
    return fill(place, el("div", { class: "tiles two" }, side("left", 1), side("right", 2)),
      el("p", { class: "row" }, button("Equal (0)", () => choose("equal")), el("span", { class: "hint" }, `${answer.waiting} to go`)));
  };
  async function next(work) { try { show(await work()); } catch (error) { note(error.message, "bad"); } }
  function choose(choice) {
    const pair = shown;
    shown = null; // a key that is held down chooses once
    if (pair) next(() => post("admin/versions/choose", { model, pair, choice }));
  }
  next(() => ask(`admin/versions/pairs?model=${encodeURIComponent(model)}`));
  return place;
}, { class: "wide", onkeydown: (event) => event.currentTarget.querySelectorAll("figure button, p button")[KEYS.indexOf(event.key)]?.click() });

/** What the pairs of a report say, as a table. */
export const pairsTable = (pairs) => (pairs.length ? table("Pairs of one prompt and seed", ["Versions", "Pairs", "Failed", "Distance, 95 %", "Slower by, 95 %", "Cost", "Choices", "Prefer the second, 95 %", "By chance"],
  pairs.map((row) => [`${row.first}, ${row.second}`, String(row.pairs), String(row.failed), interval(row.distance, (value) => value.toFixed(4)), interval(row.slower_s, seconds),
    dollars(row.usd), `${row.choices.first} : ${row.choices.second}, equal ${row.choices.equal}`, interval(row.prefer_second, percent), row.chance === null ? "" : row.chance.toPrecision(2)])) : null);
