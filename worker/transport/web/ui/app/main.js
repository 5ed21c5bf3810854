// The frame: addresses, pages, theme and key. Addresses are behind the #: #create, #job/ID, #jobs, #gallery, #compare/A/B …

import { askForKey, key } from "./api.js";
import { adminPage } from "./admin.js";
import { comparePage } from "./compare.js";
import { discoverPage } from "./discover.js";
import { el, fill, note } from "./dom.js";
import { galleryPage, imagePage } from "./gallery.js";
import { gridPage } from "./grid.js";
import { jobsPage } from "./jobs.js";
import { draftFrom, recipesPage } from "./recipes.js";
import { trainPage } from "./train.js";
import { Workbench } from "./workbench.js";

const PAGES = { create: "Create", jobs: "Jobs", gallery: "Gallery", recipes: "Recipes", train: "Train", discover: "Discover", admin: "Admin" };
const TITLE = document.title;
const main = document.getElementById("main");

const page = {
  go(address) { location.hash = address; },
  async recipe(result) { await draftFrom(result); page.go("recipes"); },
  /** Show this address without leaving the page that is shown. */
  address(address) { history.replaceState(null, "", `#${address}`); mark(); },
  compare(result) {
    if (!page.first || page.first.id === result.id) {
      page.first = result;
      note("Choose a second image to compare it with: its button Compare, or two in the gallery.");
      return;
    }
    page.go(`compare/${encodeURIComponent(page.first.id)}/${encodeURIComponent(result.id)}`);
    page.first = null;
  },
};
page.bench = new Workbench(page);

let shown = page.bench;
let started = null;

function mark() {
  const [name] = parts();
  const current = { job: "create", image: "gallery", compare: "gallery", grid: "create" }[name] ?? name;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.title = `${PAGES[current] ?? "Create"} · ${TITLE}`;
}

const parts = () => (location.hash.slice(1) || "create").split("/").map((part) => {
  try { return decodeURIComponent(part); } catch { return part; }
});

/** The workbench, with its models: once, and again if that failed. */
async function bench() {
  started ??= page.bench.start();
  try { await started; } catch (error) {
    started = null;
    fill(page.bench.place, el("p", { class: "problem", role: "alert" }, error.message));
  }
}

async function route() {
  const [name, ...rest] = parts();
  shown.leave?.();
  mark();
  const views = {
    jobs: () => jobsPage(page), gallery: () => galleryPage(page), recipes: () => recipesPage(page), train: () => trainPage(page, ...rest), discover: () => discoverPage(page), admin: () => adminPage(page, rest[0]),
    image: () => imagePage(page, rest[0]), compare: () => comparePage(page, rest), grid: () => gridPage(page, rest[0]),
  };
  shown = views[name]?.() ?? page.bench;
  if (main.firstChild !== shown.node) fill(main, shown.node);
  if (shown === page.bench) {
    if (name === "job" && rest[0]) page.bench.card.show(rest[0]);
    await bench();
  }
}

function theme() {
  const root = document.documentElement;
  const set = (value) => {
    if (value) root.dataset.theme = value; else delete root.dataset.theme;
    document.getElementById("theme").textContent = `Theme: ${value || "auto"}`;
  };
  set(localStorage.getItem("theme") ?? "");
  document.getElementById("theme").addEventListener("click", () => {
    const next = { "": "dark", dark: "light", light: "" }[root.dataset.theme ?? ""];
    localStorage.setItem("theme", next);
    set(next);
  });
}

function keyButton() {
  const shownKey = document.getElementById("key");
  const tell = () => { shownKey.textContent = key() ? "API key: set" : "API key"; };
  tell();
  shownKey.addEventListener("click", () => askForKey());
  window.addEventListener("keychanged", (event) => {
    tell();
    if (page.bench.form) started = null; // other models; what is typed stays
    if (!event.detail || (shown === page.bench && page.bench.form)) route();
  });
}

/** An image that is dropped anywhere but on a field brings its request back. */
function dropToReplay() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer?.files ?? [];
    if (file) page.bench.replay(file);
  });
}

fill(document.getElementById("nav"), Object.entries(PAGES).map(([name, title]) => el("a", { href: `#${name}` }, title)));
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
theme();
keyButton();
dropToReplay();
window.addEventListener("hashchange", route);
route();
