// Small parts that all steps share. Text is set as text: nothing a file is called becomes HTML.
import { get, send } from "./api.js";

export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(made.style, value);
    else if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// Gives a part other children; those that are null are none.
export function fill(part, ...children) { part.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false)); }

const FOCUSABLE = "button, input, select, a[href], summary";
const called = (one) => `${one.tagName} ${one.getAttribute("aria-label") || one.closest("label")?.textContent || one.textContent}`;

// Draws a part anew; the keyboard stays where it was in it, or at what has come into that place.
export function keepingFocus(part, draw) {
  const before = [...part.querySelectorAll(FOCUSABLE)], at = before.indexOf(document.activeElement);
  const name = at < 0 ? "" : called(before[at]);
  draw();
  if (at < 0) return;
  const after = [...part.querySelectorAll(FOCUSABLE)];
  (after.find((one) => called(one) === name && !one.disabled) || after[Math.min(at, after.length - 1)])?.focus({ preventScroll: true });
}

export function toast(text, kind = "", action = null) {
  const made = el(`div.toast${kind ? "." + kind : ""}`, {}, el("span", {}, text));
  if (action) made.append(el("button", { type: "button", onclick: () => { made.remove(); action.run(); } }, action.label));
  document.getElementById("toasts").append(made);
  setTimeout(() => made.remove(), action ? 9000 : kind === "bad" ? 8000 : 4000);
}

// Runs what may fail and says so; returns undefined then.
export async function attempt(promise) {
  try { return await promise; } catch (error) { toast(error.message, "bad"); return undefined; }
}

export function ask(question, yes, no = "Cancel") {
  return new Promise((resolve) => {
    const box = el("dialog", {}, el("p", {}, question), el("div.row", {},
      el("button", { type: "button", onclick: () => box.close("no") }, no),
      el("button.main", { type: "button", onclick: () => box.close("yes") }, yes)));
    box.addEventListener("close", () => { box.remove(); resolve(box.returnValue === "yes"); });
    document.body.append(box);
    box.showModal();
  });
}

export function commandBlock(lines, where = "Start it in the folder of the matssl clone.") {
  const text = lines.filter(Boolean).join("\n\n");
  if (!text) return null;
  const copy = el("button.quiet.small", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(text); toast("Copied"); } catch { toast("Select the text and copy it"); }
  } }, "Copy");
  return el("details.command", {}, el("summary", {}, "The same in a terminal"), el("pre", {}, text),
    el("div.row.ends", {}, el("span", {}, where), copy));
}

export function swatch(colour) { const dot = el("span.swatch"); dot.style.background = colour; return dot; }

export function number(value, digits = 1) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

export function length(nm) {
  if (nm === null || nm === undefined) return "unknown";
  return nm >= 1000 ? `${Number((nm / 1000).toPrecision(4))} µm` : `${Number(nm.toPrecision(4))} nm`;
}

export function minutes(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

export function plural(count, one, many = one + "s") { return `${count.toLocaleString("en")} ${count === 1 ? one : many}`; }

// What is said where nobody knows which of so many pictures show one specimen; "" where that is known.
export function doubt(count) {
  return count > 1 ? `Nothing says which of ${count} pictures show one specimen: each counts as a specimen of its own. Where several show one, intervals come out too narrow.` : "";
}

const GOING = ["starting", "running", "stopping"];
export function isGoing(job) { return job && GOING.includes(job.state); }

// Draws loss and score of a training as it goes.
export function chart(curve) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const [width, height, left, bottom, top] = [1000, 240, 46, 24, 14];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.setAttribute("class", "chart"); svg.setAttribute("role", "img");
  const draw = (name, attributes, text) => {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  const loss = curve.loss || [], score = curve.score || [];
  const last = Math.max(1, curve.status?.total || 0, ...loss.map((p) => p[0]), ...score.map((p) => p[0]));
  const high = Math.max(1e-6, ...loss.map((p) => p[1]));
  const x = (step) => left + (width - left - 46) * step / last;
  const yLoss = (value) => height - bottom - (height - bottom - top) * value / high;
  const yScore = (value) => height - bottom - (height - bottom - top) * value;
  for (const part of [0, .25, .5, .75, 1]) {
    const y = height - bottom - (height - bottom - top) * part;
    draw("line", { class: "axis", x1: left, x2: width - 46, y1: y, y2: y });
    draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, (high * part).toPrecision(2));
    if (score.length) draw("text", { x: width - 40, y: y + 4 }, `${Math.round(100 * part)} %`);
  }
  draw("text", { x: width - 46, y: height - 6, "text-anchor": "end" }, `step ${last}`);
  draw("text", { x: left, y: height - 6 }, score.length ? "grey: loss, coloured: validation mIoU" : "loss");
  if (loss.length) draw("polyline", { class: "loss", points: loss.map((p) => `${x(p[0])},${yLoss(p[1])}`).join(" ") });
  if (score.length) draw("polyline", { class: "score", points: score.map((p) => `${x(p[0])},${yScore(p[1])}`).join(" ") });
  for (const p of score) draw("circle", { cx: x(p[0]), cy: yScore(p[1]), r: 3 });
  const best = score.length ? `, best validation mIoU ${number(100 * Math.max(...score.map((p) => p[1])))} %` : "";
  svg.setAttribute("aria-label", `Course of the training: ${loss.length ? "loss " + loss[loss.length - 1][1].toPrecision(3) : "no step yet"}${best}`);
  return svg;
}

const KINDS = { look: "Looking", teach: "Teaching", predict: "Predicting", next: "Choosing", measure: "Measuring", take_over: "Reading masks" };
export function kindOf(job) { return KINDS[job.kind] || job.kind; }

// Follows a job in a box of the page until it ends; calls done(job) then.
export function follow(box, name, done, quiet = false) {
  let gone = false, opened = false;
  async function once() {
    if (gone || !box.isConnected) { gone = true; return; }
    let job;
    try { job = await get(`/api/jobs/${name}`); } catch (error) {
      if (error.status === 404) return;
      if (error.status === 401) box.replaceChildren(el("p.note.bad", {}, error.message));
      setTimeout(once, 2000);
      return;
    }
    if (gone) return;
    const going = isGoing(job);
    if (!quiet || job.state === "failed" || job.state === "died" || going) box.replaceChildren(panel(job));
    else box.replaceChildren();
    if (going) setTimeout(once, job.seconds < 20 ? 500 : 1200); else { gone = true; done(job); }
  }
  function panel(job) {
    const going = isGoing(job), step = job.steps[Math.min(job.step || 0, job.steps.length - 1)];
    const status = job.curve?.status || {}, loss = job.curve?.loss || [];
    // The state is written now and then, the loss at every step.
    const taken = Math.max(status.step || 0, loss.length ? loss[loss.length - 1][0] : 0);
    const part = status.total && step.kind === "train" && job.steps[0].argv.includes("--steps") ? taken / status.total : null;
    const head = going ? `${step.told} …` : { done: "Done", stopped: "Stopped", failed: "It did not work", died: "It was ended from outside" }[job.state];
    const log = el("details.log", { open: opened, ontoggle: (event) => { opened = event.target.open; } },
      el("summary.small.soft", {}, "What the command says"), el("pre", {}, job.log || "…"));
    return el("div.card", {},
      el("div.row.ends", {}, el("div.row", {}, going ? el("span.spin", { "aria-hidden": "true" }) : null, el("h2", { style: { margin: "0" } }, head),
        el("span.soft.small", {}, `${minutes(job.seconds)}${part !== null && going ? `, step ${taken} of ${status.total}` : ""}`)),
      going ? el("button.danger", { type: "button", onclick: async () => { await attempt(send("/api/stop", { job: name })); } }, "Stop") : null),
      going && job.log ? el("p.soft.small.last", {}, job.log.split("\n").pop().trim().slice(0, 160)) : null,
      going && part !== null ? progress(part) : null,
      !going && job.state !== "done" && job.state !== "stopped" ? el("p.note.bad", {}, reason(job)) : null,
      job.curve && job.curve.loss.length > 1 ? chart(job.curve) : null, log, commandBlock(job.commands.map((c) => c.line)));
  }
  once();
  return () => { gone = true; };
}

function progress(part) {
  const inner = el("div"); inner.style.width = `${100 * part}%`;
  return el("div.progress", { role: "progressbar", "aria-valuenow": String(Math.round(100 * part)), "aria-valuemin": "0", "aria-valuemax": "100" }, inner);
}

function reason(job) {
  const lines = (job.log || "").split("\n").filter((line) => /^(error|incomplete):/.test(line));
  if (lines.length) return lines[lines.length - 1].replace(/^(error|incomplete): /, "");
  return job.state === "died" ? "The process is gone (out of memory, or the machine was switched off). What was saved is there." : (job.log || "").trim().split("\n").pop() || "No reason was given.";
}
