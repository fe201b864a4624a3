// Step 5: numbers, with their intervals, and what to take away.
import { get, send } from "./api.js";
import { attempt, commandBlock, doubt, el, follow, isGoing, number, plural, swatch } from "./ui.js";

const WHAT = [["fractions", "Phase fractions", "area of each class, ASTM E1245"], ["objects", "Objects", "number, sizes, shapes of particles or pores"], ["grains", "Grain size", "ASTM E112; needs a class of grain boundaries"], ["layers", "Layers and cracks", "thickness, roughness"]];

export async function show(main, app, asked) {
  const [runs, own, labelled, jobs] = await Promise.all([get("/api/runs", { folder: app.folder }), get("/api/classes", { folder: app.folder }), get("/api/labelled", { folder: app.folder }), get("/api/jobs")]);
  const page = el("div.narrow"), box = el("div"), result = el("div");
  main.append(el("div.page", {}, page));
  const complete = labelled.pictures.filter((p) => p.complete);
  page.append(el("h1", {}, "Measure"));
  if (!runs.predictions.length && !complete.length) {
    page.append(el("p.lead", {}, "There is no mask to measure yet: let a model look at the pictures first, or label every pixel of one."), el("button.main", { type: "button", onclick: () => app.go("teach") }, "Teach a model"));
    return null;
  }
  page.append(el("p.lead", {}, "The masks are measured by specimen. Each number comes with the rule it follows and, where the data allow one, its interval."));
  const wanted = { folder: app.folder, run: runs.predictions.find((r) => r.name === asked.run)?.name || runs.predictions[0]?.name || "", what: [], classes: [] };
  const what = new Set(), names = new Set();
  const check = (set, value, title, text, swatchOf = null) => el("label.check", {}, el("input", { type: "checkbox", onchange: (event) => { if (event.target.checked) set.add(value); else set.delete(value); } }), el("span", {}, swatchOf ? swatch(swatchOf) : null, title, text ? el("span.soft.small", {}, ` – ${text}`) : null));
  const source = el("select", { onchange: () => { wanted.run = source.value; } }, runs.predictions.map((r) => el("option", { value: r.name, selected: r.name === wanted.run }, r.name)), complete.length ? el("option", { value: "" }, "only pictures that I have labelled all over") : null);
  const button = el("button.main", { type: "button", onclick: async () => {
    wanted.what = [...what]; wanted.classes = [...names];
    const started = await attempt(send("/api/measure", wanted));
    if (started) watch(started.job, started);
  } }, "Measure");
  page.append(el("div.two", { style: { marginBottom: "1.1rem" } }, el("div.card", {}, el("h2", {}, "What"), WHAT.map(([value, title, text]) => check(what, value, title, text)), el("p.soft.small", { style: { margin: ".6rem 0 0" } }, "Nothing ticked: what the classes allow.")),
    el("div.card", {}, el("h2", {}, "Of what"), el("label.field", {}, "Masks", source), complete.length ? el("p.soft.small", { style: { margin: ".5rem 0" } }, `${plural(complete.length, "picture is", "pictures are")} labelled or corrected all over: your mask counts there, not the predicted one.`) : null,
      el("h3", { style: { marginTop: ".8rem" } }, "Classes (none ticked: all)"), own.classes.map((c) => check(names, c.name, c.name, "", c.colour)), el("div", { style: { marginTop: "1rem" } }, button))), box, result);
  function watch(job, facts) {
    app.refreshBusy();
    result.replaceChildren();
    follow(box, job, async (ended) => { app.refreshBusy(); if (ended.state === "done") await draw(facts); }, true);
  }
  async function draw(facts) {
    const found = await attempt(get("/api/measured", { name: facts.measurement }));
    if (found) result.replaceChildren(...results(found, own.classes, facts));
  }
  const going = jobs.jobs.find((job) => isGoing(job) && job.folder === app.folder && job.kind === "measure");
  const last = jobs.jobs.find((job) => job.kind === "measure" && job.folder === app.folder && job.state === "done");
  if (going) watch(going.id, going.facts);
  else if (last) await draw(last.facts);
  return null;
}

/** Why some class has no interval, as a sentence; "" where each has one. */
export function withoutInterval(rows) {
  const why = rows.find((r) => r.interval.startsWith("none"))?.interval;
  return why ? `${why.replace(/^none/, "No interval")}.` : "";
}

function results(found, classes, facts) {
  const base = `/files/measure/${encodeURIComponent(found.name)}`, colour = (name) => classes.find((c) => c.name === name)?.colour || "#777777";
  const files = [["measure.xlsx", "Table (XLSX)"], ["report.html", "Report (HTML)"]].filter(([file]) => found.files.includes(file));
  const [kind, run] = (facts.masks || "").split("/"), unlearned = facts.unlearned || [];
  const downloads = el("div.row", {}, files.map(([file, title]) => el("a.button", { href: `${base}/${file}`, download: `${found.name}-${file}` }, `↓ ${title}`)),
    run ? el("a.button", { href: `/files/${kind}/${encodeURIComponent(run)}.zip`, download: `${run}.zip` }, "↓ Masks (ZIP)") : null);
  const parts = [];
  const rows = found.headline.length ? found.headline : [];
  const head = el("div.row.ends", { style: { marginBottom: ".8rem" } }, el("h2", { style: { margin: "0" } }, rows.length ? "Phase fractions" : "Results"), downloads);
  if (rows.length) {
    const many = rows[0];
    parts.push(el("div.card", {}, head, el("div.scroll", {}, el("table", { id: "fractions" }, el("thead", {}, el("tr", {}, el("th", {}, "Class"), el("th", {}, "Area"), el("th.num", {}, "Fraction"), el("th.num", {}, "95 % interval"))), el("tbody", {}, rows.map((r) => el("tr", {}, el("td", {}, swatch(colour(r.class)), r.class), el("td", {}, gauge(r, colour(r.class))), el("td.num", {}, unlearned.includes(r.class) && !r.fraction ? el("span.soft", {}, "not learned") : el("b", {}, `${number(r.fraction, 2)} %`)), el("td.num", {}, unlearned.includes(r.class) ? "–" : interval(r))))))),
      el("p.soft.small", { style: { marginTop: ".7rem" } }, `Mean over ${plural(Number(many.specimens), "specimen")}, ${plural(Number(many.fields), "picture")}. ${withoutInterval(rows)}`),
      unlearned.length ? el("p.note.warn", {}, `Nothing was painted of ${unlearned.join(", ")} when the model learned: it finds none, and what shows it is counted as another class. Paint it, or remove the class, and teach again.`) : null,
      doubt(facts.unsure) ? el("p.note.warn", {}, doubt(facts.unsure), " Name specimens in Open, then measure again.") : null,
      el("p.soft.small", { style: { margin: "0" } }, "The interval is that of the specimens you imaged. What the model draws wrongly is not in it: compare some masks with your own eyes, and correct them.")));
  } else parts.push(el("div.card", {}, head));
  if (found.from.length) {
    const mine = found.from.filter((r) => r.mask.startsWith("drawn")).length;
    parts.push(el("p.note", {}, `${plural(mine, "mask was", "masks were")} drawn or corrected by you, ${found.from.length - mine} predicted.`));
  }
  if (found.files.includes("report.html")) {
    const frame = el("iframe.report", { src: `${base}/report.html`, title: "Report of the measurement" });
    frame.addEventListener("load", () => { try { frame.style.height = `${frame.contentDocument.documentElement.scrollHeight + 20}px`; } catch { /* it scrolls then */ } });
    parts.push(frame);
  }
  parts.push(commandBlock([found.command]));
  return parts.filter(Boolean);
}

function interval(row) { return row.low === null || row.high === null ? "–" : `${number(row.low, 2)} to ${number(row.high, 2)} %`; }

function gauge(row, colour) {
  const fill = el("div.fill"), made = el("div.gauge", { "aria-hidden": "true" }, fill);
  fill.style.width = `${Math.max(0, Math.min(100, row.fraction || 0))}%`; fill.style.background = colour;
  if (row.low !== null && row.high !== null) {
    const range = el("div.range");
    range.style.left = `${row.low}%`; range.style.width = `${Math.max(0, row.high - row.low)}%`;
    made.append(range);
  }
  return made;
}
