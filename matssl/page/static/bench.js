// The bar of a picture and the length of a pixel, said by clicking on the picture.
import { pixels } from "./api.js";
import { attempt, el, length, toast } from "./ui.js";
import { Viewer, region, surface } from "./viewer.js";

const UNITS = { nm: 1, "µm": 1000, mm: 1e6 };

export function bench(card, app, pictures, say) {
  const stage = el("div.stage"), which = el("select", { "aria-label": "Picture" }, pictures.map((p) => el("option", { value: p.image }, p.image)));
  const rows = el("input", { type: "number", min: "0", step: "1", "aria-label": "Rows of the bar", style: { width: "5.2rem" } });
  const bar = el("div.row"), size = el("div.row"), told = el("p.soft.small", {}, "");
  card.append(el("div.bench", {}, stage, el("div", {})));
  const viewer = new Viewer(stage, "Picture with its information bar. Arrow keys move the line.");
  let picture = null, part = null, mode = "bar", points = [];
  const modes = [["bar", "Bar"], ["scale", "Scale bar"]].map(([name, title]) => el("button", { type: "button", "aria-pressed": String(name === mode), onclick: () => {
    mode = name; points = [];
    modes.forEach((button, i) => button.setAttribute("aria-pressed", String(["bar", "scale"][i] === name)));
    explain(); viewer.draw();
  } }, title));
  const explain = () => { told.textContent = mode === "bar" ? "Drag the line to the top of the information bar. What lies below is used nowhere." : "Click both ends of the scale bar, then write how long it is."; };
  const amount = el("input", { type: "number", min: "0", step: "any", "aria-label": "Length of the scale bar", style: { width: "6.5rem" } });
  const unit = el("select", { "aria-label": "Unit" }, Object.keys(UNITS).map((name) => el("option", { value: name, selected: name === "µm" }, name)));
  const direct = el("input", { type: "text", placeholder: "12.5 nm", "aria-label": "Pixel size with its unit", style: { width: "7rem" }, value: app.facts.said.pixel_size || "" });
  const result = el("p.small", {}, "");
  const across = () => Math.hypot(points[1].px - points[0].px, points[1].py - points[0].py);
  const measured = () => { if (points.length < 2 || !(amount.value > 0)) { result.textContent = points.length === 2 ? `${across().toFixed(1)} pixels` : ""; return null; } const nm = amount.value * UNITS[unit.value] / across(); result.textContent = `${across().toFixed(1)} pixels: ${length(nm)} a pixel`; return nm; };
  amount.addEventListener("input", measured); unit.addEventListener("change", measured);
  rows.addEventListener("input", () => viewer.draw());
  bar.append(rows, el("button", { type: "button", onclick: () => say({ crop_bottom: String(Math.max(0, Math.round(Number(rows.value) || 0))) }) }, "Cut these rows"),
    el("button.quiet", { type: "button", onclick: () => say({ crop_bottom: "none" }) }, "No bar"), el("button.quiet", { type: "button", onclick: () => say({ crop_bottom: "" }) }, "Find it"));
  size.append(amount, unit, el("button", { type: "button", onclick: () => { const nm = measured(); if (nm === null) { toast("Click both ends of the scale bar and write its length"); return; } say({ pixel_size: `${nm.toPrecision(7)}nm` }); } }, "Set"));
  card.lastChild.lastChild.append(el("label.field", {}, "Picture", which), el("div.row", { style: { margin: ".8rem 0 .5rem" } }, modes), told,
    el("h3", {}, "Rows of the bar, all pictures"), bar, el("h3", { style: { marginTop: "1rem" } }, "Length of the scale bar"), size, result,
    el("h3", { style: { marginTop: ".6rem" } }, "Or the pixel size, all pictures"), el("div.row", {}, direct, el("button", { type: "button", onclick: () => say({ pixel_size: direct.value.replace(/\s+/g, "").replace(",", ".").replace("µ", "u") }) }, "Set"),
      app.facts.said.pixel_size ? el("button.quiet", { type: "button", onclick: () => say({ pixel_size: "" }) }, "As in the files") : null));
  explain();
  const line = () => picture.height - (Number(rows.value) || 0) - part.top;
  const place = (py) => { rows.value = String(Math.max(0, Math.min(picture.height - 1, Math.round(picture.height - part.top - py)))); viewer.draw(); };
  let dragging = false;
  viewer.ondown = (at) => {
    if (mode === "bar") { dragging = true; place(at.py); } else { if (points.length > 1) points = []; points.push(at); measured(); viewer.draw(); }
  };
  viewer.onmove = (at) => { if (dragging) place(at.py); };
  viewer.onup = () => { dragging = false; };
  viewer.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (step && mode === "bar") { rows.value = String(Math.max(0, (Number(rows.value) || 0) + step * (event.shiftKey ? 10 : 1))); viewer.draw(); event.preventDefault(); }
  });
  viewer.over = (context) => {
    if (!picture) return;
    const [x, y] = viewer.on(0, line()), [right, bottom] = viewer.on(part.width, part.height), ratio = viewer.ratio;
    context.fillStyle = "rgba(160, 20, 20, .35)"; context.fillRect(x, y, right - x, Math.max(0, bottom - y));
    context.strokeStyle = "#ff6b5e"; context.lineWidth = 2 * ratio; context.beginPath(); context.moveTo(x, y); context.lineTo(right, y); context.stroke();
    points.forEach((p, i) => {
      const [cx, cy] = viewer.on(p.px, p.py);
      context.strokeStyle = "#ffd54a"; context.beginPath(); context.moveTo(cx, cy - 12 * ratio); context.lineTo(cx, cy + 12 * ratio); context.stroke();
      if (i) { context.beginPath(); context.moveTo(...viewer.on(points[0].px, points[0].py)); context.lineTo(cx, cy); context.stroke(); }
    });
  };
  async function load() {
    picture = pictures.find((p) => p.image === which.value); points = []; measured();
    // The lower part of a large picture: there the bars are.
    part = region(picture, 0, picture.height);
    const seen = await attempt(pixels("/api/pixels", { folder: app.folder, image: picture.image, ...part }));
    if (!seen) return;
    rows.value = String(picture.bar);
    viewer.show(surface(seen.data, part.width, part.height, seen.channels), part.width, part.height);
  }
  which.addEventListener("change", load);
  load();
  return () => viewer.close();
}
