// Step 2: labels are painted, and saved as they are painted.
import { get, pixels, put, send } from "./api.js";
import { ask, attempt, commandBlock, el, fill, keepingFocus, number, plural, toast } from "./ui.js";
import { isPart, region, surface } from "./viewer.js";
import { Editor } from "./editor.js";

const TOOLS = [["brush", "Brush", "B"], ["polygon", "Polygon", "P"], ["flood", "Flood", "F"], ["eraser", "Eraser", "E"]];
const SPARE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#6e6e6e", "#9600ff", "#5a2d00"];
const SAVE_AFTER = 450, AGAIN_AFTER = 2500;

export async function show(main, app, asked) {
  const pictures = app.facts.pictures.filter((p) => !p.error);
  if (!pictures.length) { main.append(el("div.page", {}, el("p.note.bad", {}, "There is no picture here that can be read."))); return null; }
  let classes = (await get("/api/classes", { folder: app.folder })).classes;
  let known = (await get("/api/labelled", { folder: app.folder })).pictures;
  let current = pictures.find((p) => p.image === asked.image) || pictures[0], part = null, revision = "new", turn = 0;
  const strip = el("div.strip", { "aria-label": "Pictures" }), stage = el("div.stage"), panel = el("div.panel"), bar = el("div.bar");
  main.append(el("div.work", {}, strip, el("div.middle", {}, stage, bar), panel));
  const editor = new Editor(stage, "Picture to label. B, P, F, E choose a tool, digits a class. Arrow keys move a cross, space draws there.");
  const viewer = editor.viewer;
  const saved = el("span.tag", { role: "status" }, "Saved"), place = el("span.fixed"), zoomed = el("span"), told = el("span.grow");

  // --- saving: what changed is sent, one window at a time; what failed is sent again ---
  let dirty = null, timer = null, sending = null, lost = false;
  editor.onchange = (left, top, right, bottom) => {
    dirty = dirty ? [Math.min(dirty[0], left), Math.min(dirty[1], top), Math.max(dirty[2], right), Math.max(dirty[3], bottom)] : [left, top, right, bottom];
    saved.textContent = "Saving …"; saved.className = "tag on";
    clearTimeout(timer); timer = setTimeout(flush, SAVE_AFTER);
  };
  async function flush() {
    clearTimeout(timer);
    if (sending) { await sending; }
    if (!dirty || lost) return;
    sending = sendOne();
    await sending;
    sending = null;
    if (dirty && !timer) await flush();
  }
  async function sendOne() {
    const [left, top, right, bottom] = dirty;
    dirty = null; timer = null;
    const window = { left: left + part.left, top: top + part.top, width: right - left, height: bottom - top };
    try {
      const answer = await put("/api/labels", { folder: app.folder, image: current.image, ...window, revision }, editor.cut(editor.mask, left, top, right, bottom));
      revision = answer.revision;
      note(current.image, answer.labelled);
      if (!dirty) { saved.textContent = "Saved"; saved.className = "tag"; }
    } catch (error) {
      const box = [left, top, right, bottom];
      dirty = dirty ? [Math.min(dirty[0], left), Math.min(dirty[1], top), Math.max(dirty[2], right), Math.max(dirty[3], bottom)] : box;
      saved.textContent = "Not saved"; saved.className = "tag on";
      // 401: the page was started anew; its new address, opened anywhere in this browser, mends it.
      if (error.status === 0 || error.status === 401 || error.status >= 500) { timer = setTimeout(flush, AGAIN_AFTER); told.textContent = error.message; return; }
      lost = true;
      if (error.status === 409) {
        if (await ask(`${error.message}. Loading drops what you drew here since then.`, "Load them")) { dirty = null; lost = false; await open(current); }
      } else toast(error.message, "bad");
      lost = false;
    }
  }
  const waiting = (event) => { if (dirty || sending) { event.preventDefault(); } };
  window.addEventListener("beforeunload", waiting);

  function note(image, count) {
    const total = (current.height - current.bar) * current.width, entry = known.find((p) => p.image === image);
    if (entry) Object.assign(entry, { count, complete: count >= total }); else known.push({ image, count, complete: count >= total, pixels: {} });
    if (!count) known = known.filter((p) => p.image !== image);
    drawStrip();
    drawFoot();
  }

  // --- pictures ---
  function drawStrip() {
    const marks = new Map(known.map((p) => [p.image, p.complete ? "all" : "some"]));
    if (strip.childElementCount) {
      for (const button of strip.querySelectorAll("button")) {
        const here = button.dataset.image === current.image;
        if (here && !button.hasAttribute("aria-current")) button.scrollIntoView({ block: "nearest" });
        if (here) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
        const tag = button.querySelector(".tag"), mark = marks.get(button.dataset.image);
        tag.textContent = mark || ""; tag.hidden = !mark; tag.className = `tag${mark ? " on" : ""}`;
      }
      return;
    }
    strip.append(el("ul", {}, pictures.map((p) => el("li", {}, el("button", { type: "button", "data-image": p.image, title: p.image, onclick: () => open(p) },
      el("img", { src: `/api/picture.png?${new URLSearchParams({ folder: app.folder, image: p.image })}`, alt: "", loading: "lazy" }),
      el("span.name", {}, el("b", {}, p.image), el("span.tag", { hidden: true })))))));
    drawStrip();
  }

  async function open(picture, left = 0, top = 0) {
    await flush();
    const mine = ++turn;
    current = picture; part = region(picture, left, top);
    drawStrip();
    viewer.wait.textContent = "Loading …";
    const window = { folder: app.folder, image: picture.image, ...part };
    const got = await attempt(Promise.all([pixels("/api/pixels", window), pixels("/api/labels", window)]));
    if (mine !== turn || !got) { viewer.wait.textContent = got ? "" : "This picture cannot be shown."; return; }
    const [seen, drawn] = got;
    revision = drawn.revision;
    viewer.show(surface(seen.data, part.width, part.height, seen.channels), part.width, part.height);
    editor.load(drawn.data, seen.channels === 1 ? seen.data : grey(seen.data), part.width, part.height, Math.max(1, Math.min(part.height, picture.height - picture.bar - part.top)), classes);
    viewer.wait.textContent = "";
    saved.textContent = "Saved"; saved.className = "tag"; dirty = null;
    history.replaceState(null, "", `#label?${new URLSearchParams({ folder: app.folder, image: picture.image })}`);
    drawPanel();
    viewer.canvas.focus({ preventScroll: true });
    if (asked.fill) { const run = asked.fill; delete asked.fill; await fillFrom(run); }
  }

  // What a model says where nothing is labelled; then it is the user's to correct.
  async function fillFrom(run) {
    const window = { folder: app.folder, run, image: current.image, ...part };
    const got = await attempt(Promise.all([get("/api/prediction", { folder: app.folder, run }), pixels("/api/predicted", window)]));
    if (!got) return;
    const values = new Uint8Array(256).fill(255), strange = [];
    got[0].names.forEach((name, i) => { const one = classes.find((c) => c.name === name); if (one) values[i] = one.value; else strange.push(name); });
    if (strange.length) toast(`No class here is called ${strange.join(", ")}: left unlabelled`, "bad");
    if (editor.fill(got[1].data.map((v) => values[v]))) toast("Filled from the model. Correct it: all of it counts as yours now.", "", { label: "Undo", run: () => editor.undo() });
    else toast("Everything is labelled already");
  }

  // --- classes and tools ---
  async function saveClasses(next) {
    const answer = await attempt(send("/api/classes", { folder: app.folder, classes: next }, "PUT"));
    if (answer) classes = answer.classes;
    if (!classes.some((c) => c.value === editor.value)) editor.value = classes[0].value;
    editor.colours(classes);
    drawPanel();
  }

  function choose(value) { editor.value = value; if (editor.tool === "eraser") pick("brush"); else drawPanel(); }

  function pick(tool) { editor.tool = tool; editor.polygon = []; drawPanel(); viewer.draw(); }

  function classRow(one, i) {
    const name = el("input", { type: "text", value: one.name, maxlength: "60", "aria-label": `Name of class ${i + 1}`, onchange: () => saveClasses(classes.map((c) => c === one ? { ...c, name: name.value } : c)), onfocus: () => { if (editor.value !== one.value) { editor.value = one.value; mark(); } },
      // A name that is said is said: keys are for the picture again.
      onkeydown: (event) => { if (event.key === "Enter") viewer.canvas.focus({ preventScroll: true }); } });
    const colour = el("input", { type: "color", value: one.colour, "aria-label": `Colour of ${one.name}`, onchange: () => saveClasses(classes.map((c) => c === one ? { ...c, colour: colour.value } : c)) });
    const row = el("div.class", { "data-value": String(one.value), onclick: (event) => { if (event.target === row) choose(one.value); } }, colour, name,
      el("button.quiet", { type: "button", "aria-pressed": String(editor.value === one.value), "aria-label": `Draw ${one.name}`, onclick: () => choose(one.value) }, el("kbd", {}, String(i + 1))),
      el("button.quiet", { type: "button", "aria-label": `Remove ${one.name}`, disabled: classes.length < 2, onclick: () => saveClasses(classes.filter((c) => c !== one)) }, "×"));
    row.classList.toggle("on", editor.value === one.value);
    return row;
  }

  function mark() { for (const row of panel.querySelectorAll(".class")) { const on = row.dataset.value === String(editor.value); row.classList.toggle("on", on); } }

  function slider(title, value, low, high, change, unit = "") {
    const output = el("output", {}, `${value}${unit}`);
    return el("label.slider", {}, title, output, el("input", { type: "range", min: String(low), max: String(high), value: String(value), oninput: (event) => { output.textContent = `${event.target.value}${unit}`; change(Number(event.target.value)); } }));
  }

  const history_ = el("div.row");
  function drawHistory() {
    keepingFocus(history_, () => history_.replaceChildren(el("button", { type: "button", disabled: !editor.done.length, onclick: () => editor.undo() }, "Undo"),
      el("button", { type: "button", disabled: !editor.undone.length, onclick: () => editor.redo() }, "Redo"),
      el("button.quiet", { type: "button", onclick: () => { editor.clear(); } }, "Clear picture")));
  }

  let run = null;
  function drawPanel() { keepingFocus(panel, fillPanel); }

  function fillPanel() {
    fill(panel,
      el("section", {}, el("h2", {}, "Classes"), el("div.classes", {}, classes.map(classRow)),
        el("button.quiet.small", { type: "button", onclick: () => {
          const value = [...Array(255).keys()].find((v) => !classes.some((c) => c.value === v)), colour = SPARE.find((c) => !classes.some((d) => d.colour === c)) || "#888888";
          let number = classes.length + 1; while (classes.some((c) => c.name === `class ${number}`)) number++;
          editor.value = value; saveClasses([...classes, { value, name: `class ${number}`, colour }]);
        } }, "+ Add a class")),
      el("section", {}, el("h2", {}, "Tool"), el("div.tools", { role: "group", "aria-label": "Tool" }, TOOLS.map(([name, title, key]) => el("button", { type: "button", "aria-pressed": String(editor.tool === name), onclick: () => pick(name) }, title, el("kbd", {}, key)))),
        editor.tool === "flood" ? slider("Grey levels alike", editor.tolerance, 0, 80, (v) => { editor.tolerance = v; }) : editor.tool === "polygon" ? el("p.soft.small", { style: { margin: ".6rem 0 0" } }, "Click corners; double click or Enter closes it, Esc drops it.")
          : slider("Size", editor.size, 1, 120, (v) => { editor.size = v; viewer.draw(); }, " px"),
        el("label.check.small", { style: { marginTop: ".7rem" } }, el("input", { type: "checkbox", checked: editor.keep, onchange: (event) => { editor.keep = event.target.checked; } }), "Keep what is painted already"),
        el("div", { style: { marginTop: ".7rem" } }, history_)),
      el("section", {}, el("h2", {}, "View"), slider("Labels", Math.round(100 * editor.layer.opacity), 0, 100, (v) => { editor.layer.opacity = v / 100; viewer.draw(); }, " %"),
        el("div.row", { style: { marginTop: ".6rem" } }, el("button", { type: "button", onclick: () => viewer.fit() }, "Fit"), el("button", { type: "button", onclick: () => viewer.exact() }, "1:1"), el("button", { type: "button", "aria-label": "Zoom in", onclick: () => viewer.zoom(1.5) }, "+"), el("button", { type: "button", "aria-label": "Zoom out", onclick: () => viewer.zoom(1 / 1.5) }, "−")),
        isPart(current) ? overview() : null),
      run ? el("section", {}, el("h2", {}, "The model"), el("p.soft.small", {}, `${run} has seen this picture.`), el("button", { type: "button", onclick: () => fillFrom(run) }, "Fill the rest from the model")) : null,
      foot, keys(),
      commandBlock([`labels: ${app.facts.labels_at}\nuse them with --mask_folder ${app.workspace.path}/${app.facts.labels_at} --classes ${app.workspace.path}/${app.facts.labels_at}/classes.yaml`], "Every command reads these files."));
    drawHistory();
    drawFoot();
  }

  // Drawn when a mask is saved, too: who types the name of a class meanwhile is not disturbed.
  const foot = el("section");
  function drawFoot() {
    const there = known.length > 0;
    if (foot.dataset.count === String(known.length)) return;
    foot.dataset.count = String(known.length);
    fill(foot, el("p.small", {}, there ? `${plural(known.length, "picture")} labelled. A few strokes of each class in one or two pictures will do.` : "Paint a few strokes of each class. What you leave out counts as not labelled."),
      el("button.main", { type: "button", disabled: !there, onclick: async () => { await flush(); app.go("teach"); } }, "Teach a model →"));
  }

  function keys() {
    const all = [["1–9", "class"], ["[  ] or ,  .", "smaller, larger"], ["Ctrl Z, Ctrl Y", "undo, redo"], ["+  −  0", "zoom in, out, fit"], ["wheel", "zoom"], ["right button, Space", "move the picture"], ["arrows, Enter", "cross by keyboard, draw there"], ["N", "next picture"]];
    return el("section", {}, el("dl.keys", {}, all.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])));
  }

  function overview() {
    const box = el("span");
    const set = () => Object.assign(box.style, { left: `${100 * part.left / current.width}%`, top: `${100 * part.top / current.height}%`, width: `${100 * part.width / current.width}%`, height: `${100 * part.height / current.height}%` });
    set();
    const map = el("button.map", { type: "button", "aria-label": "Overview: click where to work", onclick: (event) => {
      const place = map.getBoundingClientRect();
      open(current, Math.round((event.clientX - place.left) / place.width * current.width - part.width / 2), Math.round((event.clientY - place.top) / place.height * current.height - part.height / 2));
    } }, el("img", { src: `/api/picture.png?${new URLSearchParams({ folder: app.folder, image: current.image, longest: "500" })}`, alt: "" }), box);
    return el("div", { style: { marginTop: ".8rem" } }, el("h3", {}, "Large picture: part shown"), map);
  }

  editor.onstate = () => {
    const at = editor.hover;
    place.textContent = at && at.px >= 0 && at.py >= 0 && at.px < editor.width && at.py < editor.height ? `x ${Math.floor(at.px) + part.left}  y ${Math.floor(at.py) + part.top}  ${nameAt(at)}` : "";
    drawHistory();
  };
  const nameAt = (at) => { const value = editor.mask?.[Math.floor(at.py) * editor.width + Math.floor(at.px)]; return classes.find((c) => c.value === value)?.name || ""; };
  viewer.onview = () => { zoomed.textContent = `${number(100 * viewer.scale / viewer.ratio, 0)} %`; };
  viewer.keepsDigits = (key) => key !== "0" && key >= "1" && key <= "9";
  bar.append(saved, told, place, zoomed);

  const pressed = (event) => {
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range" && event.target.type !== "checkbox") return;
    const word = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    if (command && word === "z") { event.shiftKey ? editor.redo() : editor.undo(); event.preventDefault(); return; }
    if (command && word === "y") { editor.redo(); event.preventDefault(); return; }
    // Some keyboards have brackets behind AltGr, which looks like Ctrl and Alt.
    if ("[],.".includes(word) && (event.ctrlKey === event.altKey)) {
      editor.size = Math.max(1, Math.min(120, "[,".includes(word) ? Math.floor(editor.size / 1.25) : Math.ceil(editor.size * 1.25)));
      drawPanel(); viewer.draw(); return;
    }
    if (command || event.altKey) return;
    const tool = TOOLS.find(([, , key]) => key.toLowerCase() === word);
    if (tool) { pick(tool[0]); return; }
    if (/^[1-9]$/.test(word) && classes[word - 1]) { choose(classes[word - 1].value); return; }
    if (word === "n") { open(pictures[(pictures.indexOf(current) + 1) % pictures.length]); return; }
    if (event.target !== viewer.canvas) return;
    if (word === "escape") { editor.polygon = []; editor.key = null; viewer.draw(); return; }
    if (word === " ") { viewer.space = true; event.preventDefault(); return; }
    if (word === "enter") { if (editor.tool === "polygon" && editor.polygon.length > 2 && !editor.key) editor.closePolygon(); else if (editor.tool === "polygon" && editor.polygon.length > 2 && samePlace()) editor.closePolygon(); else editor.press(); event.preventDefault(); return; }
    const step = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[word];
    if (step) { const far = event.shiftKey ? 10 : 1; editor.step(step[0] * far, step[1] * far, false); event.preventDefault(); }
  };
  // A second Enter on the last corner closes a polygon.
  const samePlace = () => { const end = editor.polygon[editor.polygon.length - 1]; return editor.key && end.px === editor.key.px && end.py === editor.key.py; };
  const released = (event) => { if (event.key === " ") viewer.space = false; };
  window.addEventListener("keydown", pressed);
  window.addEventListener("keyup", released);
  window.addEventListener("blur", () => { viewer.space = false; });
  get("/api/runs", { folder: app.folder }).then((runs) => { run = runs.predictions[0]?.name || null; if (run && editor.mask) drawPanel(); }).catch(() => {});
  await open(current);
  return async () => {
    window.removeEventListener("keydown", pressed); window.removeEventListener("keyup", released);
    await flush();
    window.removeEventListener("beforeunload", waiting);
    viewer.close();
  };
}

function grey(data) {
  const found = new Uint8Array(data.length / 3);
  for (let i = 0, j = 0; i < found.length; i++, j += 3) found[i] = (299 * data[j] + 587 * data[j + 1] + 114 * data[j + 2]) / 1000;
  return found;
}
