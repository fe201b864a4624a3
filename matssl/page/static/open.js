// Step 1: a folder, what is in it, where the bar is cut, how large a pixel is, what is one specimen.
import { get, send, upload } from "./api.js";
import { attempt, commandBlock, doubt, el, follow, length, number, plural, toast } from "./ui.js";
import { bench } from "./bench.js";

export async function show(main, app) {
  app.workspace = await get("/api/workspace");
  const page = el("div.page"), side = el("div.side");
  main.append(el("div.open", {}, side, page));
  drawSide(side, app);
  if (app.folder === null) { welcome(page, app); return null; }
  let look;
  try { look = await send("/api/look", { folder: app.folder }); } catch (error) {
    if (error.status === 409 && app.facts) { page.append(el("p.note.warn", {}, `The folder has changed; it is read again once nothing else runs.`)); return folder(page, app); }
    page.append(el("h1", {}, "This folder cannot be opened"), el("p.note.bad", {}, error.message));
    return null;
  }
  app.refreshBusy();
  if (!look.job) { await app.reload(); return folder(page, app); }
  const box = el("div");
  page.append(el("h1", {}, app.folder === "." ? app.workspace.name : app.folder), el("p.lead", {}, "Every picture is read once: size, depth, information bar, pixel size, sharpness, masks that are there already."), box);
  follow(box, look.job, async (job) => {
    if (job.state === "done") { await app.reload(); app.go("open"); }
  });
  return null;
}

function drawSide(side, app) {
  const list = el("ul.list", {}, app.workspace.folders.map((one) => el("li", {}, el("button", {
    type: "button", "aria-current": one.folder === app.folder ? "true" : null,
    onclick: () => { app.folder = one.folder; app.facts = null; app.go("open", { folder: one.folder }); },
  }, el("span", { title: one.folder }, one.folder === "." ? `${app.workspace.name} (all)` : one.folder), el("span.tag", {}, String(one.pictures))))));
  const input = el("input", { type: "file", multiple: true, accept: "image/*,.tif,.tiff,.pgm,.ppm", hidden: true, "aria-hidden": "true" });
  const state = el("div");
  const drop = el("div.drop", {}, el("div", {}, "Drop pictures here, or "), el("button.small", { type: "button", onclick: () => input.click() }, "Choose files"), state);
  const take = async (files) => {
    const into = app.folder !== null ? app.folder : app.workspace.folders.length === 1 ? app.workspace.folders[0].folder : ".";
    let done = 0;
    for (const file of files) {
      try { await upload("/api/upload", { folder: into, name: file.name }, file, (part) => { state.textContent = `${file.name} ${Math.round(100 * part)} %`; }); done++; } catch (error) { toast(error.message, "bad"); }
    }
    state.textContent = "";
    if (done) { toast(`${plural(done, "picture")} added`); app.facts = null; app.go("open", { folder: into, t: String(Date.now()) }); }
  };
  input.addEventListener("change", () => take([...input.files]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take([...event.dataTransfer.files]); });
  side.append(el("h2", {}, "Folders"), app.workspace.folders.length ? list : el("p.soft.small", {}, "No pictures here yet."), drop, input);
}

function welcome(page, app) {
  page.append(el("div.narrow", {}, el("h1", {}, "From micrographs to numbers"),
    el("p.lead", {}, "Choose a folder on the left. Then paint a few strokes on one or two pictures, let a model learn from them, look at what it says about all the others, correct it, and measure."),
    el("div.two.thirds", {}, ...[["1  Open", "See what is in the folder. Check the information bar, the pixel size and which pictures show one specimen."],
      ["2  Label", "Paint phases with brush, polygon or flood. A few strokes of each class are enough to start."],
      ["3  Teach", "A forest learns in seconds, a network in minutes. You can stop at any time and keep the best."],
      ["4  See", "The result over each picture, and where the model is unsure. Correct it and teach again."],
      ["5  Measure", "Phase fractions, objects, grain size and layers with intervals, as a table to take away."]].map(([title, text]) => el("div.card", {}, el("h2", {}, title), el("p", { style: { margin: "0" } }, text)))),
    el("p.soft.small", { style: { marginTop: "1.2rem" } }, `All files stay in ${app.workspace.path}; nothing is sent anywhere.`)));
}

function tally(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  if (sorted.length === 2) return `${sorted[0][0]}, ${sorted[1][0]}`;
  return sorted.length === 1 ? String(sorted[0][0]) : sorted.length ? `${sorted[0][0]} and ${sorted.length - 1} more` : "–";
}

async function folder(page, app) {
  const facts = app.facts, good = facts.pictures.filter((p) => !p.error), broken = facts.pictures.filter((p) => p.error);
  const tiles = [[String(good.length), good.length === 1 ? "picture" : "pictures"], [tally(good.map((p) => `${p.width} × ${p.height}`)), "pixels"], [tally(good.map((p) => `${p.bits} bit`)), "depth"],
    [tally(good.map((p) => length(p.pixel_size))), "pixel size"], [`${facts.unsure > 1 ? "up to " : ""}${new Set(good.map((p) => p.specimen)).size}`, "specimens"], [tally(good.map((p) => p.bar ? `${p.bar} rows` : "none")), "bar cut off"]];
  const warnings = [facts.refused, ...facts.warnings].filter(Boolean);
  page.append(el("div.head", {}, el("h1", {}, app.folder === "." ? app.workspace.name : app.folder),
    el("button.main", { type: "button", onclick: () => app.go("label") }, "Label pictures →")));
  page.append(el("div.card", {}, el("div.tiles", {}, tiles.map(([value, what]) => el("div", {}, el("b", {}, value), el("span", {}, what)))),
    warnings.map((text) => el("p.note.warn", {}, text.replaceAll(`${app.workspace.path}/`, ""))), broken.map((p) => el("p.note.bad", {}, p.error.replaceAll(`${app.workspace.path}/`, ""))),
    facts.has_masks ? taking(app, facts) : null));
  if (!good.length) { page.append(el("p.note.bad", {}, "There is no picture here that can be read.")); return null; }
  const chosen = new Set();
  const specimens = picturesCard(app, facts, good, chosen);
  const close = { run: null };
  const benchCard = el("div.card", {}, el("h2", {}, "Information bar and pixel size"));
  page.append(benchCard, specimens, el("div.card", {}, el("h2", {}, "Contact sheet"),
    el("img.sheet", { src: `/api/sheet.png?${new URLSearchParams({ folder: app.folder, t: String(Date.now()) })}`, alt: "Every picture with the rows that are cut off, its specimen and what stands out" }),
    el("details.log", {}, el("summary.small.soft", {}, "All that was found, in words"), el("pre", {}, facts.text))), commandBlock([facts.command]));
  close.run = bench(benchCard, app, good, async (said) => {
    if (await attempt(send("/api/said", { folder: app.folder, ...said })) === undefined) return;
    toast("Kept. The folder is read again.");
    app.go("open", { t: String(Date.now()) });
  });
  return () => close.run();
}

function taking(app, facts) {
  const box = el("div");
  const count = facts.pictures.filter((p) => p.mask).length;
  const button = el("button", { type: "button", onclick: async () => {
    const started = await attempt(send("/api/take_over", { folder: app.folder }));
    if (started) follow(box, started.job, (job) => { if (job.state === "done") { toast("The masks are labels now"); app.go("label"); } }, true);
  } }, "Use them as labels");
  return el("div", {}, el("div.row.ends.note", {}, el("span", {}, `${plural(count, "picture has", "pictures have")} a mask: ${facts.classes.join(", ")}`), button), box);
}

function picturesCard(app, facts, good, chosen) {
  const name = el("input", { type: "text", placeholder: "Name of the specimen", "aria-label": "Name of the specimen", maxlength: "80" });
  const apply = el("button", { type: "button", disabled: true, onclick: async () => {
    const text = name.value.trim();
    if (!text) { toast("Write the name of the specimen first"); name.focus(); return; }
    const specimens = Object.fromEntries([...chosen].map((image) => [image, text]));
    if (await attempt(send("/api/said", { folder: app.folder, specimens })) === undefined) return;
    for (const picture of good) if (chosen.has(picture.image)) picture.specimen = text;
    chosen.clear();
    toast(`Written to specimens.csv: ${plural(Object.keys(specimens).length, "picture")} of ${text}`);
    app.go("open", { t: String(Date.now()) });
  } }, "Set");
  const told = el("span.soft.small", {}, "Click pictures of one specimen, then name it.");
  let last = null;
  const buttons = good.map((picture, i) => el("button.pic", { type: "button", "aria-pressed": "false", title: picture.notes.join("\n") || null, onclick: (event) => {
    const range = event.shiftKey && last !== null ? good.slice(Math.min(i, last), Math.max(i, last) + 1) : [picture];
    const on = !chosen.has(picture.image);
    for (const one of range) { if (on) chosen.add(one.image); else chosen.delete(one.image); }
    last = i;
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(chosen.has(good[j].image))));
    apply.disabled = !chosen.size;
    told.textContent = chosen.size ? `${plural(chosen.size, "picture")} chosen` : "Click pictures of one specimen, then name it.";
  } }, el("img", { src: `/api/picture.png?${new URLSearchParams({ folder: app.folder, image: picture.image })}`, alt: "", loading: "lazy" }),
  el("span.about", {}, el("b", {}, picture.image), el("span", {}, `Specimen ${picture.specimen || "–"}`),
    el("span", {}, `${picture.width} × ${picture.height}${picture.pixel_size ? ", " + number(picture.pixel_size, 2) + " nm" : ""}`),
    picture.notes.length ? el("span", {}, `⚠ ${picture.notes[0]}`) : null)));
  return el("div.card", {}, el("div.row.ends", {}, el("h2", { style: { margin: "0" } }, "Which pictures show one specimen"), el("div.row", {}, told, name, apply)),
    el("p.soft.small", { style: { margin: ".5rem 0 0" } }, `Pictures of one specimen are no independent samples: intervals are over specimens. ${facts.grouped ? `They are grouped ${facts.grouped}.` : ""}`),
    doubt(facts.unsure) ? el("p.note.warn", {}, doubt(facts.unsure), " Click those of one specimen and name it.") : null,
    el("ul.gallery", {}, buttons.map((button) => el("li", {}, button))));
}
