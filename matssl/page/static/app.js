// Which step is shown, which folder is open, and what runs meanwhile.
import { get } from "./api.js";
import { attempt, el, isGoing, kindOf, minutes } from "./ui.js";
import * as open from "./open.js";
import * as label from "./label.js";
import * as teach from "./teach.js";
import * as see from "./see.js";
import * as measure from "./measure.js";

const STEPS = [["open", "Open", open], ["label", "Label", label], ["teach", "Teach", teach], ["see", "See", see], ["measure", "Measure", measure]];
const app = { folder: null, facts: null, go, reload, refreshBusy };
let leave = null, step = "open";

function query() {
  const [wanted, text] = (location.hash.slice(1) || "open").split("?");
  return { wanted, asked: Object.fromEntries(new URLSearchParams(text || "")) };
}

function go(step, asked = {}) {
  const words = new URLSearchParams({ ...(app.folder !== null ? { folder: app.folder } : {}), ...asked }).toString();
  const hash = `#${step}${words ? "?" + words : ""}`;
  if (location.hash === hash) render(); else location.hash = hash;
}

async function reload() {
  const found = app.folder === null ? null : await get("/api/folder", { folder: app.folder });
  app.facts = found && found.pictures ? found : null;
  drawSteps();
}

function drawSteps() {
  const ready = app.facts !== null;
  document.getElementById("steps").replaceChildren(...STEPS.map(([name, title], i) => {
    const words = app.folder !== null ? `?${new URLSearchParams({ folder: app.folder })}` : "";
    const closed = name !== "open" && !ready;
    return el("li", {}, el("a", { href: `#${name}${words}`, "aria-current": name === step ? "step" : null, "aria-disabled": closed ? "true" : null, tabindex: closed ? "-1" : null },
      el("i", { "aria-hidden": "true" }, String(i + 1)), title));
  }));
  const where = document.getElementById("where");
  where.textContent = app.folder === null ? app.workspace.name : app.folder === "." ? app.workspace.name : app.folder;
  where.title = app.workspace.path;
}

let drawing = 0;
async function render() {
  const turn = ++drawing, { wanted, asked } = query();
  if (leave) { const end = leave; leave = null; await end(); }
  const main = document.getElementById("main");
  if (asked.folder !== undefined && asked.folder !== app.folder) {
    app.folder = asked.folder; app.facts = null;
    try { await reload(); } catch { app.facts = null; }
  }
  if (turn !== drawing) return;
  const found = STEPS.find(([name]) => name === wanted) || STEPS[0];
  const shown = app.facts === null && found[0] !== "open" ? STEPS[0] : found;
  step = shown[0];
  drawSteps();
  document.title = `${shown[1]} – ${document.getElementById("where").textContent} – matssl`;
  main.replaceChildren();
  leave = (await attempt(shown[2].show(main, app, asked))) || null;
  // Who came by keyboard goes on in the step, and not at the top of the page.
  if (turn === drawing && document.activeElement === document.body) main.focus({ preventScroll: true });
}

let timer = null;
async function refreshBusy() {
  clearTimeout(timer);
  let running = null;
  try { running = (await get("/api/jobs")).jobs.find(isGoing) || null; } catch { /* said elsewhere */ }
  const busy = document.getElementById("busy");
  if (running) {
    const text = `${kindOf(running)} ${running.folder === "." ? "" : running.folder}, ${minutes(running.seconds)}`;
    if (busy.dataset.job !== running.id) { busy.dataset.job = running.id; busy.replaceChildren(el("span.spin", { "aria-hidden": "true" }), el("span")); }
    busy.lastChild.textContent = text;
    timer = setTimeout(refreshBusy, 1500);
  } else { busy.replaceChildren(); delete busy.dataset.job; }
}

function theme() {
  const kept = localStorage.getItem("theme"), dark = kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark", dark);
}

// Its address would be that of a step.
document.querySelector("a.skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("main").focus(); });
document.getElementById("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.classList.contains("dark") ? "light" : "dark");
  theme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
theme();
window.addEventListener("hashchange", render);
app.workspace = await attempt(get("/api/workspace"));
if (app.workspace) { await render(); refreshBusy(); }
