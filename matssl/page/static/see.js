// Step 4: what the model says of each picture, where it is unsure, and which picture to label next.
import { get, pixels, send } from "./api.js";
import { attempt, commandBlock, el, fill, follow, keepingFocus, number, swatch } from "./ui.js";
import { Viewer, coloured, heat, isPart, lookup, region, surface } from "./viewer.js";

export async function show(main, app, asked) {
  const runs = await get("/api/runs", { folder: app.folder });
  if (!runs.predictions.length) {
    main.append(el("div.page", {}, el("div.narrow", {}, el("h1", {}, "See"), el("p.lead", {}, "No model has looked at this folder yet."), el("button.main", { type: "button", onclick: () => app.go("teach") }, "Teach a model"))));
    return null;
  }
  const run = runs.predictions.find((r) => r.name === asked.run) || runs.predictions[0];
  const [found, own] = await Promise.all([get("/api/prediction", { folder: app.folder, run: run.name }), get("/api/classes", { folder: app.folder })]);
  const pictures = app.facts.pictures.filter((p) => !p.error && found.pictures.includes(p.image));
  const strip = el("div.strip"), stage = el("div.stage"), panel = el("div.panel"), bar = el("div.bar"), box = el("div");
  main.append(el("div.work", {}, strip, el("div.middle", {}, stage, bar), panel));
  const viewer = new Viewer(stage, "Picture with what the model says. Plus and minus zoom, 0 fits.");
  const classes = found.names.map((name, i) => ({ value: i, name, colour: own.classes.find((c) => c.name === name)?.colour || ["#0072b2", "#e69f00", "#009e73", "#cc79a7"][i % 4] }));
  const layers = { classes: { canvas: null, visible: true, opacity: .5 }, uncertainty: { canvas: null, visible: false, opacity: .85 } };
  viewer.layers.push(layers.classes, layers.uncertainty);
  viewer.panning = true;
  let current = pictures.find((p) => p.image === asked.image) || pictures[0], part = null, turn = 0, chosen = null, data = null, unsure = null;
  if (!current) { viewer.wait.textContent = "This run has no mask of these pictures."; return () => viewer.close(); }
  const place = el("span.grow"), zoomed = el("span");
  bar.append(place, zoomed);

  strip.append(el("ul", {}, pictures.map((p) => el("li", {}, el("button", { type: "button", "data-image": p.image, title: p.image, onclick: () => open(p) },
    el("img", { src: `/api/picture.png?${new URLSearchParams({ folder: app.folder, image: p.image })}`, alt: "", loading: "lazy" }), el("span.name", {}, el("b", {}, p.image)))))));

  async function open(picture, left = 0, top = 0) {
    const mine = ++turn;
    current = picture; part = region(picture, left, top); data = unsure = null;
    for (const button of strip.querySelectorAll("button")) { if (button.dataset.image === picture.image) { button.setAttribute("aria-current", "true"); button.scrollIntoView({ block: "nearest" }); } else button.removeAttribute("aria-current"); }
    viewer.wait.textContent = "Loading …";
    const window = { folder: app.folder, image: picture.image, ...part }, of = { ...window, run: run.name };
    const got = await attempt(Promise.all([pixels("/api/pixels", window), pixels("/api/predicted", of)]));
    if (mine !== turn) return;
    viewer.wait.textContent = got ? "" : "This picture cannot be shown.";
    if (!got) return;
    data = got[1].data;
    layers.classes.canvas = coloured(data, part.width, part.height, lookup(classes));
    layers.uncertainty.canvas = null;
    viewer.show(surface(got[0].data, part.width, part.height, got[0].channels), part.width, part.height);
    drawPanel();
    history.replaceState(null, "", `#see?${new URLSearchParams({ folder: app.folder, run: run.name, image: picture.image })}`);
    if (layers.uncertainty.visible) await loadUnsure();
  }

  async function loadUnsure() {
    if (layers.uncertainty.canvas || !found.uncertain) return;
    const mine = turn, seen = await attempt(pixels("/api/predicted", { folder: app.folder, run: run.name, image: current.image, ...part, what: "uncertainty" }));
    if (!seen || mine !== turn) return;
    unsure = seen.data;
    layers.uncertainty.canvas = coloured(unsure, part.width, part.height, heat());
    viewer.draw();
  }

  function slider(title, layer) {
    const output = el("output", {}, `${Math.round(100 * layer.opacity)} %`);
    return el("label.slider", {}, title, output, el("input", { type: "range", min: "0", max: "100", value: String(Math.round(100 * layer.opacity)), oninput: (event) => { layer.opacity = event.target.value / 100; output.textContent = `${event.target.value} %`; viewer.draw(); } }));
  }

  function drawPanel() { keepingFocus(panel, fillPanel); }

  function fillPanel() {
    // Of the pixels shown; rows of an information bar belong to no class.
    const counts = new Float64Array(256);
    for (const value of data) counts[value]++;
    const total = classes.reduce((sum, c) => sum + counts[c.value], 0);
    const heatOpacity = slider("Opacity", layers.uncertainty);
    heatOpacity.hidden = !layers.uncertainty.visible;
    fill(panel,
      el("section", {}, el("label.field", {}, "Prediction", el("select", { onchange: (event) => app.go("see", { run: event.target.value, image: current.image }) }, runs.predictions.map((r) => el("option", { value: r.name, selected: r.name === run.name }, r.name))))),
      el("section", {}, el("h2", {}, isPart(current) ? "Area of each class in this part" : "Area of each class here"), el("ul.legend", {}, classes.map((c) => el("li", {}, el("span", {}, swatch(c.colour), c.name), el("span", {}, !counts[c.value] && found.unlearned.includes(c.name) ? el("span.soft", { title: "Nothing was painted of it when the model learned, so it cannot be found" }, "not learned") : total ? `${number(100 * counts[c.value] / total)} %` : "–"))))),
      el("section", {}, el("h2", {}, "View"),
        el("label.check", {}, el("input", { type: "checkbox", checked: layers.classes.visible, onchange: (event) => { layers.classes.visible = event.target.checked; viewer.draw(); } }), "Classes"), slider("Opacity", layers.classes),
        el("label.check", { style: { marginTop: ".8rem" } }, el("input", { type: "checkbox", checked: layers.uncertainty.visible, disabled: !found.uncertain, onchange: async (event) => { layers.uncertainty.visible = event.target.checked; heatOpacity.hidden = !event.target.checked; await loadUnsure(); viewer.draw(); } }), "Where the model is unsure"), heatOpacity,
        el("div.row", { style: { marginTop: ".8rem" } }, el("button", { type: "button", onclick: () => viewer.fit() }, "Fit"), el("button", { type: "button", onclick: () => viewer.exact() }, "1:1"), el("button", { type: "button", "aria-label": "Zoom in", onclick: () => viewer.zoom(1.5) }, "+"), el("button", { type: "button", "aria-label": "Zoom out", onclick: () => viewer.zoom(1 / 1.5) }, "−")),
        isPart(current) ? parts() : null),
      el("section", {}, el("h2", {}, "Not right?"), el("p.soft.small", {}, "Correct it, and teach again: the model learns most from its own mistakes."),
        el("div.row", {}, el("button", { type: "button", onclick: () => app.go("label", { image: current.image }) }, "Add strokes"), el("button", { type: "button", onclick: () => app.go("label", { image: current.image, fill: run.name }) }, "Correct all of it"))),
      el("section", {}, el("h2", {}, "Which picture next?"), chosen ? ranking() : el("div", {}, el("p.soft.small", {}, "Ranked by how unsure the model is; specimens take turns."), el("button", { type: "button", onclick: next }, "Choose")), box),
      el("section", {}, el("button.main", { type: "button", onclick: () => app.go("measure", { run: run.name }) }, "Measure →")),
      found.warnings.length ? el("section", {}, found.warnings.map((text) => el("p.note.small", {}, text))) : null, commandBlock([found.command]));
  }

  function parts() {
    const columns = Math.ceil(current.width / part.width), rows = Math.ceil(current.height / part.height), all = [];
    for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) all.push([x, y]);
    return el("label.field", { style: { marginTop: ".8rem" } }, "Part of the large picture", el("select", { onchange: (event) => { const [x, y] = all[event.target.value]; open(current, x * part.width, y * part.height); } },
      all.map(([x, y], i) => el("option", { value: String(i), selected: Math.floor(part.left / part.width) === x && Math.floor(part.top / part.height) === y }, `row ${y + 1}, column ${x + 1}`))));
  }

  async function next() {
    const started = await attempt(send("/api/next", { folder: app.folder, model: run.model, n: 3 }));
    app.refreshBusy();
    if (started) follow(box, started.job, async (job) => {
      if (job.state !== "done") return;
      chosen = (await attempt(get("/api/chosen", { job: started.job })))?.pictures.filter((p) => p.chosen) || null;
      drawPanel();
    }, true);
  }

  function ranking() {
    return el("ul.list", {}, chosen.map((p, i) => el("li", {}, el("button", { type: "button", onclick: () => app.go("label", { image: p.image }) }, el("span", {}, `${i + 1}. ${p.image}`), el("span.tag", { title: "mean entropy of the tenth of most uncertain pixels" }, p.entropy === null ? "" : number(p.entropy, 2))))));
  }

  viewer.onview = () => { zoomed.textContent = `${number(100 * viewer.scale / viewer.ratio, 0)} %`; };
  viewer.onmove = (at) => {
    const x = Math.floor(at.px), y = Math.floor(at.py);
    if (!data || x < 0 || y < 0 || x >= part.width || y >= part.height) { place.textContent = ""; return; }
    const i = y * part.width + x, name = classes[data[i]]?.name || "information bar";
    place.textContent = `x ${x + part.left}  y ${y + part.top}  ${name}${unsure ? `, unsure ${Math.round(unsure[i] / 2.55)} %` : ""}`;
  };
  await open(current);
  return () => viewer.close();
}
