// The approval gallery: what the ledger says is shown, each decision is one POST, and nothing is kept here.

const $ = (id) => document.getElementById(id);
const undone = []; // places of decisions, the last one last
let records = [];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function ask(path, body) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, sent);
  } catch {
    throw new Error("The command that shows this page has ended. What was decided is written down.");
  }
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

const open = (record) => record.state !== "approved" && record.state !== "rejected";
const wanted = (record) => ({ all: true, open: open(record) })[$("filter").value] ?? record.state === $("filter").value;

function sorted() {
  const score = $("sort").value;
  const chosen = records.filter(wanted);
  return score ? chosen.sort((a, b) => (b.scores[score] ?? -Infinity) - (a.scores[score] ?? -Infinity)) : chosen;
}

function shown(record, large) {
  const video = (record.media_type ?? "").startsWith("video/");
  const media = make(video ? "video" : "img", { src: `images/${record.index}` });
  if (video) Object.assign(media, { controls: large, muted: true, loop: true });
  else Object.assign(media, { alt: record.prompt, loading: large ? "eager" : "lazy" });
  return media;
}

function told(record) {
  const scores = Object.entries(record.scores).map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`);
  const seed = record.seed === undefined ? [] : [`seed ${record.seed}`];
  const cost = record.cost === undefined ? [] : [`$${record.cost}`];
  const same = record.duplicate_of === undefined ? [] : [`the same image as ${record.duplicate_of + 1}`];
  return [record.model ?? "", ...seed, ...cost, ...scores, ...same].filter(Boolean).join(" · ");
}

function card(record) {
  const state = make("p", { className: open(record) ? "told" : record.state });
  state.textContent = `${record.index + 1}: ${open(record) ? "undecided" : record.state}${record.reason ? `, ${record.reason}` : ""}`;
  const media = shown(record, false);
  media.addEventListener("click", () => lookAt(record));
  const approve = make("button", { textContent: "Approve" });
  const reject = make("button", { textContent: "Reject" });
  approve.addEventListener("click", () => decide(record, "approved"));
  reject.addEventListener("click", () => decide(record, "rejected"));
  const element = make("article", { tabIndex: 0, ariaLabel: `Image ${record.index + 1}: ${record.prompt}` }, media, state);
  element.append(make("p", { className: "prompt", textContent: record.prompt }), make("p", { className: "told", textContent: told(record) }));
  element.append(make("div", { className: "buttons" }, approve, reject));
  element.dataset.state = record.state;
  element.dataset.index = record.index;
  return element;
}

function draw(focus = 0) {
  const chosen = sorted();
  const cards = chosen.map(card);
  const nothing = make("p", { className: "empty", textContent: records.length ? "No such image is left." : "There is no image yet." });
  $("images").replaceChildren(...(cards.length ? cards : [nothing]));
  const decided = (state) => records.filter((record) => record.state === state).length;
  $("counts").textContent = `${records.filter(open).length} undecided, ${decided("approved")} approved, ${decided("rejected")} rejected`;
  cards[Math.min(focus, cards.length - 1)]?.focus();
}

function place() {
  const cards = [...$("images").children];
  return cards.indexOf(document.activeElement?.closest("article"));
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function decide(record, state) {
  const reason = $("reason").value.trim();
  if (state === "rejected" && !reason) {
    problem("Say in Reason why the image is rejected; it stays there for the next.");
    $("reason").focus();
    return;
  }
  const at = Math.max(0, place());
  try {
    const said = await ask(`records/${record.index}`, { state, reason });
    delete record.reason;
    Object.assign(record, said);
    if (state !== "undecided") undone.push(record.index);
    if (reason && ![...$("reasons").options].some((option) => option.value === reason)) $("reasons").append(make("option", { value: reason }));
    problem("");
    draw(at);
  } catch (error) {
    problem(error.message);
  }
}

function undo() {
  const record = records.find((each) => each.index === undone.at(-1));
  if (!record) return;
  undone.length -= 1;
  decide(record, "undecided");
}

function lookAt(record) {
  $("large").replaceChildren(shown(record, true), make("p", { textContent: record.prompt }), make("p", { className: "told", textContent: told(record) }));
  $("close").showModal();
}

addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || $("close").open) return;
  const cards = [...$("images").querySelectorAll("article")];
  const at = place();
  const record = records.find((each) => String(each.index) === cards[at]?.dataset.index);
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  if (event.key in moves) cards[Math.min(cards.length - 1, Math.max(0, at + moves[event.key]))]?.focus();
  else if (event.key === "u") undo();
  else if (!record) return;
  else if (event.key === "a") decide(record, "approved");
  else if (event.key === "r") decide(record, "rejected");
  else if (event.key === "Enter" && event.target.matches("article")) lookAt(record);
  else return;
  event.preventDefault();
});
$("filter").addEventListener("change", () => draw());
$("sort").addEventListener("change", () => draw());
$("back").addEventListener("click", () => $("close").close());
$("done").addEventListener("click", async () => {
  await ask("done", {}).catch(() => undefined);
  document.body.replaceChildren(make("p", { className: "empty", textContent: "Done. What was decided is in results.jsonl; this page can be closed." }));
});

try {
  records = await ask("records");
  const scores = new Set(records.flatMap((record) => Object.keys(record.scores)));
  for (const name of scores) $("sort").append(make("option", { value: name, textContent: name }));
  draw();
} catch (error) {
  problem(error.message);
}
