// Step 3: a model learns from the labels; it can be stopped, and goes on.
import { get, send } from "./api.js";
import { attempt, commandBlock, el, follow, isGoing, number, plural, swatch } from "./ui.js";

// Encoder that the linear head was measured with, and how it comes here.
const MEASURED = "hub/imagenet-efficientnet-lite0", FETCH = "python -m matssl.tools.fetch_weights imagenet-efficientnet-lite0 brings some.";
const KINDS = { forest: "forest", linear: "linear head" };

export async function show(main, app) {
  const [labelled, classes, runs, jobs] = await Promise.all([get("/api/labelled", { folder: app.folder }), get("/api/classes", { folder: app.folder }), get("/api/runs", { folder: app.folder }), get("/api/jobs")]);
  const page = el("div.narrow"), box = el("div");
  main.append(el("div.page", {}, page));
  const names = classes.classes, drawn = labelled.pictures;
  // A linear head is the better one of the two that learn in seconds, but it reads pretrained weights.
  const first = runs.encoders.find((name) => name === MEASURED) || runs.encoders[0] || "";
  const asked = { folder: app.folder, head: first ? "linear" : "forest", steps: 500, start: first ? first : "" };
  const total = (value) => drawn.reduce((sum, p) => sum + (p.pixels[value] || 0), 0);
  const missing = names.filter((c) => !total(c.value));
  const enough = names.length - missing.length >= 2;
  page.append(el("h1", {}, "Teach"), el("p.lead", {}, "A model learns your classes from the pixels you have painted and then draws them on every picture of the folder."));
  const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Class"), el("th.num", {}, "Labelled pixels"), el("th.num", {}, "Pictures"))),
    el("tbody", {}, names.map((c) => el("tr", {}, el("td", {}, swatch(c.colour), c.name), el("td.num", {}, total(c.value).toLocaleString("en")), el("td.num", {}, String(drawn.filter((p) => p.pixels[c.value]).length))))));
  const lines = el("div"), steps = el("input", { type: "number", min: "10", max: "100000", value: "500", oninput: () => { asked.steps = Math.max(10, Math.min(100000, Number(steps.value) || 500)); plan(); } });
  const weights = { linear: first, network: "" };
  const start = el("select", { onchange: () => { weights[asked.head] = asked.start = start.value; plan(); } });
  const stepsField = el("label.field", {}, "Steps", steps);
  const more = el("div.row.base", { style: { marginBottom: "1rem" } }, stepsField, el("label.field", {}, "Start from", start));
  // What the chosen kind of model can be told; each keeps what was chosen for it.
  function choose(head) {
    asked.head = head;
    asked.start = weights[head] || "";
    more.hidden = head === "forest"; stepsField.hidden = head !== "network";
    start.replaceChildren(...(head === "network" ? [el("option", { value: "" }, "Random weights")] : []), ...runs.encoders.map((name) => el("option", { value: name }, `Pretrained: ${name.replace(/^hub\//, "")}`)));
    start.value = asked.start;
    plan();
  }
  const radio = (value, title, text, closed = false) => el("label", {}, el("input", { type: "radio", name: "head", value, checked: asked.head === value, disabled: closed, onchange: () => choose(value) }), el("b", {}, title), el("span", {}, text));
  const button = el("button.main", { type: "button", disabled: !enough, onclick: () => begin(asked) }, "Teach and predict all pictures");
  const setup = el("div.two", {}, el("div.card", {}, el("h2", {}, "What it learns from"), table,
    missing.length && drawn.length ? el("p.note.warn", { style: { marginTop: ".8rem" } }, `Nothing is painted of ${missing.map((c) => c.name).join(", ")}: it cannot be learned.`) : null,
    el("p.soft.small", { style: { marginTop: ".8rem" } }, drawn.length ? `${plural(drawn.length, "picture")} of ${app.facts.pictures.length}; ${plural(drawn.filter((p) => p.complete).length, "is", "are")} labelled all over.` : "")),
  el("div.card", {}, el("h2", {}, "How"), el("div.choice", { role: "radiogroup", "aria-label": "Kind of model" }, radio("linear", "Linear head", first ? "Reads pretrained weights, learns in seconds from a few strokes. Try it first." : `Reads pretrained weights, of which there are none yet: ${FETCH}`, !first),
    radio("forest", "Forest", "Sees grey levels and edges only. Learns in seconds, needs no weights."), radio("network", "Network", "U-Net, minutes. Better at shapes and textures, wants more labels.")), more, button,
    enough ? null : el("p.note", { style: { marginTop: ".8rem" } }, "Paint at least two classes first. ", el("a", { href: `#label?${new URLSearchParams({ folder: app.folder })}` }, "Go to Label")), lines));
  page.append(box, setup);
  const active = jobs.jobs.filter((job) => isGoing(job) && job.kind === "teach").map((job) => job.facts.run);
  if (runs.models.length) page.append(history(app, runs, begin, use, active));
  async function plan() {
    if (!enough) return;
    try { const answer = await send("/api/plan", asked); lines.replaceChildren(commandBlock(answer.commands.map((c) => c.line)) || ""); } catch { lines.replaceChildren(); }
  }
  async function begin(wanted) {
    button.disabled = true;
    const started = await attempt(send("/api/teach", wanted));
    button.disabled = !enough;
    if (started) watch(started.job, started.prediction);
  }
  async function use(model) {
    const started = await attempt(send("/api/see", { folder: app.folder, model }));
    if (started) watch(started.job, started.prediction);
  }
  function watch(job, prediction) {
    app.refreshBusy();
    page.parentElement.scrollTo({ top: 0 });
    follow(box, job, (ended) => {
      app.refreshBusy();
      if (ended.state === "done") box.prepend(el("div.row.ends.card", {}, el("b", {}, "The model has looked at every picture."), el("button.main", { type: "button", onclick: () => app.go("see", { run: prediction }) }, "See the result →")));
      const learned = Boolean(ended.curve?.status?.step || ended.curve?.loss?.length);
      if (ended.state === "stopped") box.prepend(el("div.row.ends.card", {}, el("span", {}, learned ? "Stopped. What it has learned so far is kept." : "Stopped before the first step: nothing is learned yet."), el("button", { type: "button", onclick: () => app.go("teach", { t: String(Date.now()) }) }, "Show models")));
    });
  }
  const going = jobs.jobs.find((job) => isGoing(job) && job.folder === app.folder && ["teach", "predict"].includes(job.kind));
  if (going) watch(going.id, going.facts.prediction);
  choose(asked.head);
  return null;
}

function history(app, runs, begin, use, active) {
  const rows = runs.models.map((m) => el("tr", {}, el("td", {}, m.name), el("td", {}, m.head !== "network" ? KINDS[m.head] || m.head : `network${m.step ? `, step ${m.step}${m.total ? " of " + m.total : ""}` : ""}`),
    el("td.num", {}, m.score === null ? "–" : `${number(100 * m.score)} %`), el("td", {}, el("span.tag", {}, active.includes(m.name) ? "running" : { running: "stopped", failed: "stopped" }[m.state] || m.state)),
    el("td.right-text", {}, el("div.row", { style: { justifyContent: "flex-end" } },
      m.resumable && m.state !== "done" && !active.includes(m.name) ? el("button", { type: "button", onclick: () => begin({ folder: app.folder, head: "network", resume: m.name }) }, "Go on") : null,
      m.usable ? el("button", { type: "button", onclick: () => use(m.name) }, "Predict all pictures") : null,
      m.state === "done" ? el("a.button", { href: `/files/finetune/${encodeURIComponent(m.name)}/report.html`, target: "_blank", rel: "noopener" }, "Report") : null))));
  return el("div.card", { style: { marginTop: "1.1rem" } }, el("h2", {}, "Models of this folder"), el("div.scroll", {}, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Name"), el("th", {}, "Kind"), el("th.num", {}, "Held-out mIoU"), el("th", {}, "State"), el("th", {}))), el("tbody", {}, rows))));
}
