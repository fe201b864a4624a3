// Drawing on a mask: brush, eraser, polygon, flood by grey; undo and redo. The mask is exact at
// the picture's own pixels; 255 is not labelled.
import { Viewer, lookup } from "./viewer.js";

const NONE = 255, MOST_STEPS = 200, MOST_BYTES = 96 << 20;

export class Editor {
  constructor(host, label) {
    this.viewer = new Viewer(host, label);
    this.tool = "brush"; this.value = 0; this.size = 12; this.tolerance = 12; this.keep = false;
    this.layer = { canvas: null, visible: true, opacity: .55 };
    this.viewer.layers.push(this.layer);
    this.done = []; this.undone = []; this.polygon = []; this.stroke = null; this.hover = null; this.key = null;
    this.onchange = () => {}; this.onstate = () => {};
    const viewer = this.viewer;
    viewer.ondown = (place, event) => this.down(place, event);
    viewer.onmove = (place) => this.move(place);
    viewer.onup = () => this.up();
    viewer.onleave = () => { this.hover = null; viewer.draw(); };
    viewer.over = (context) => this.sketch(context);
    viewer.canvas.addEventListener("dblclick", () => { if (this.tool === "polygon") this.closePolygon(); });
  }

  // grey: bytes for the flood; rows: those above an information bar, in this window.
  load(mask, grey, width, height, rows, classes) {
    Object.assign(this, { mask, grey, width, height, rows });
    this.done = []; this.undone = []; this.polygon = []; this.stroke = null; this.key = null;
    this.image = new ImageData(width, height);
    this.words = new Uint32Array(this.image.data.buffer);
    this.layer.canvas = document.createElement("canvas");
    this.layer.canvas.width = width; this.layer.canvas.height = height;
    this.colours(classes);
    this.onstate();
  }

  colours(classes) {
    this.table = lookup(classes);
    if (this.mask) { this.refresh(0, 0, this.width, this.height); }
  }

  refresh(left, top, right, bottom) {
    const { words, mask, table, width } = this;
    for (let y = top; y < bottom; y++) for (let i = y * width + left, end = y * width + right; i < end; i++) words[i] = table[mask[i]];
    this.layer.canvas.getContext("2d").putImageData(this.image, 0, 0, left, top, right - left, bottom - top);
    this.viewer.draw();
  }

  // --- one operation: what it changes is remembered as the box around it ---
  begin() { this.before = this.mask.slice(); this.box = [this.width, this.height, 0, 0]; }

  touch(left, top, right, bottom) {
    const box = this.box;
    left = Math.max(0, left); top = Math.max(0, top); right = Math.min(this.width, right); bottom = Math.min(this.rows, bottom);
    if (right <= left || bottom <= top) return;
    box[0] = Math.min(box[0], left); box[1] = Math.min(box[1], top); box[2] = Math.max(box[2], right); box[3] = Math.max(box[3], bottom);
    this.refresh(left, top, right, bottom);
  }

  commit() {
    const [left, top, right, bottom] = this.box, before = this.before;
    this.before = null;
    if (right <= left || bottom <= top) return false;
    const step = { left, top, right, bottom, old: this.cut(before, left, top, right, bottom), now: this.cut(this.mask, left, top, right, bottom) };
    if (step.old.every((v, i) => v === step.now[i])) return false;
    this.done.push(step); this.undone = [];
    let bytes = 0;
    for (let i = this.done.length - 1; i >= 0; i--) {
      bytes += 2 * this.done[i].old.length;
      if (i < this.done.length - 1 && (bytes > MOST_BYTES || this.done.length - i > MOST_STEPS)) { this.done.splice(0, i + 1); break; }
    }
    this.onchange(left, top, right, bottom);
    this.onstate();
    return true;
  }

  cut(mask, left, top, right, bottom) {
    const width = right - left, found = new Uint8Array(width * (bottom - top));
    for (let y = top; y < bottom; y++) found.set(mask.subarray(y * this.width + left, y * this.width + right), (y - top) * width);
    return found;
  }

  undo() { this.replay(this.done, this.undone, "old"); }

  redo() { this.replay(this.undone, this.done, "now"); }

  replay(from, to, which) {
    if (this.stroke) return;
    const step = from.pop();
    if (!step) return;
    to.push(step);
    const { left, top, right, bottom } = step, width = right - left;
    for (let y = top; y < bottom; y++) this.mask.set(step[which].subarray((y - top) * width, (y - top + 1) * width), y * this.width + left);
    this.refresh(left, top, right, bottom);
    this.onchange(left, top, right, bottom);
    this.onstate();
  }

  put(i) { if (!this.keep || this.paint === NONE || this.before[i] === NONE) this.mask[i] = this.paint; }

  // A disc of so many pixels across; of one pixel it is that pixel.
  disc(px, py) {
    const r = this.size / 2, cx = this.size % 2 ? Math.floor(px) + .5 : Math.round(px), cy = this.size % 2 ? Math.floor(py) + .5 : Math.round(py);
    const top = Math.max(0, Math.floor(cy - r)), bottom = Math.min(this.rows, Math.ceil(cy + r));
    for (let y = top; y < bottom; y++) {
      const half = r * r - (y + .5 - cy) ** 2;
      if (half < 0) continue;
      const reach = Math.sqrt(half), left = Math.max(0, Math.ceil(cx - reach - .5)), right = Math.min(this.width, Math.floor(cx + reach - .5) + 1);
      for (let x = left; x < right; x++) this.put(y * this.width + x);
    }
  }

  line(a, b) {
    const far = Math.hypot(b.px - a.px, b.py - a.py), every = Math.max(.5, this.size / 6), count = Math.max(1, Math.ceil(far / every));
    for (let i = 0; i <= count; i++) this.disc(a.px + (b.px - a.px) * i / count, a.py + (b.py - a.py) * i / count);
    const r = Math.ceil(this.size / 2) + 1;
    this.touch(Math.floor(Math.min(a.px, b.px)) - r, Math.floor(Math.min(a.py, b.py)) - r, Math.ceil(Math.max(a.px, b.px)) + r, Math.ceil(Math.max(a.py, b.py)) + r);
  }

  flood(px, py) {
    const x0 = Math.floor(px), y0 = Math.floor(py), { width, rows, grey, tolerance } = this;
    if (x0 < 0 || y0 < 0 || x0 >= width || y0 >= rows) return;
    this.paint = this.value;
    this.begin();
    const level = grey[y0 * width + x0], seen = new Uint8Array(width * rows), stack = [y0 * width + x0];
    const fits = (i) => !seen[i] && Math.abs(grey[i] - level) <= tolerance;
    let [left, top, right, bottom] = [x0, y0, x0 + 1, y0 + 1];
    while (stack.length) {
      const start = stack.pop();
      if (!fits(start)) continue;
      const y = Math.floor(start / width), from = y * width, end = from + width;
      let a = start, b = start;
      while (a > from && fits(a - 1)) a--;
      while (b + 1 < end && fits(b + 1)) b++;
      for (let i = a; i <= b; i++) { seen[i] = 1; this.put(i); }
      left = Math.min(left, a - from); right = Math.max(right, b - from + 1); top = Math.min(top, y); bottom = Math.max(bottom, y + 1);
      for (const next of [y - 1, y + 1]) {
        if (next < 0 || next >= rows) continue;
        const shift = (next - y) * width;
        let open = false;
        for (let i = a + shift; i <= b + shift; i++) { const fit = fits(i); if (fit && !open) stack.push(i); open = fit; }
      }
    }
    this.touch(left, top, right, bottom);
    this.commit();
  }

  closePolygon() {
    const points = this.polygon;
    this.polygon = [];
    if (points.length > 2) {
      this.paint = this.value;
      this.begin();
      const ys = points.map((p) => p.py), top = Math.max(0, Math.floor(Math.min(...ys))), bottom = Math.min(this.rows, Math.ceil(Math.max(...ys)));
      for (let y = top; y < bottom; y++) {
        const cuts = [], middle = y + .5;
        points.forEach((a, i) => {
          const b = points[(i + 1) % points.length];
          if (a.py <= middle !== b.py <= middle) cuts.push(a.px + (middle - a.py) * (b.px - a.px) / (b.py - a.py));
        });
        cuts.sort((a, b) => a - b);
        for (let i = 0; i + 1 < cuts.length; i += 2)
          for (let x = Math.max(0, Math.ceil(cuts[i] - .5)), end = Math.min(this.width, Math.ceil(cuts[i + 1] - .5)); x < end; x++) this.put(y * this.width + x);
      }
      const xs = points.map((p) => p.px);
      this.touch(Math.floor(Math.min(...xs)) - 1, top, Math.ceil(Math.max(...xs)) + 1, bottom);
      this.commit();
    }
    this.onstate();
    this.viewer.draw();
  }

  // Puts other values where nothing is labelled, as one step that can be taken back.
  fill(values) {
    this.begin();
    for (let i = 0, end = this.width * this.rows; i < end; i++) if (this.mask[i] === NONE) this.mask[i] = values[i];
    this.touch(0, 0, this.width, this.rows);
    return this.commit();
  }

  clear() {
    this.begin();
    this.mask.fill(NONE, 0, this.width * this.rows);
    this.touch(0, 0, this.width, this.rows);
    this.commit();
  }

  // --- mouse, pen, finger ---
  down(place, event) {
    if (!this.mask) return;
    this.key = null;
    if (this.tool === "brush" || this.tool === "eraser") {
      this.paint = this.tool === "eraser" ? NONE : this.value;
      this.begin();
      this.stroke = place;
      // A shift draws a straight line from where the last stroke ended.
      this.line(event.shiftKey && this.last ? this.last : place, place);
    } else if (this.tool === "flood") this.flood(place.px, place.py);
    else if (this.tool === "polygon") { this.polygon.push({ px: place.px, py: place.py }); this.onstate(); this.viewer.draw(); }
  }

  move(place) {
    this.hover = place;
    if (this.stroke) { this.line(this.stroke, place); this.stroke = place; }
    this.onstate();
    this.viewer.draw();
  }

  up() {
    if (!this.stroke) return;
    this.last = this.stroke; this.stroke = null;
    this.commit();
  }

  // --- keyboard: a cross that arrows move, and a key that draws there ---
  step(dx, dy, drawing) {
    const old = this.key || { px: this.width / 2, py: this.rows / 2 };
    this.key = { px: Math.max(.5, Math.min(this.width - .5, Math.floor(old.px) + .5 + dx)), py: Math.max(.5, Math.min(this.rows - .5, Math.floor(old.py) + .5 + dy)) };
    if (drawing && this.tool !== "flood" && this.tool !== "polygon") { this.dab(old, this.key); }
    this.hover = this.key;
    this.viewer.reveal(this.key.px, this.key.py);
    this.onstate();
  }

  dab(from, to) {
    this.paint = this.tool === "eraser" ? NONE : this.value;
    this.begin(); this.line(from, to); this.commit();
  }

  press() {
    if (!this.key) { this.step(0, 0, false); return; }
    if (this.tool === "flood") this.flood(this.key.px, this.key.py);
    else if (this.tool === "polygon") { this.polygon.push({ ...this.key }); this.onstate(); this.viewer.draw(); }
    else this.dab(this.key, this.key);
  }

  sketch(context) {
    const viewer = this.viewer, ratio = viewer.ratio;
    context.lineWidth = 1.5 * ratio;
    if (this.rows < this.height) {
      const [x, y] = viewer.on(0, this.rows), [right, bottom] = viewer.on(this.width, this.height);
      context.fillStyle = "rgba(10, 14, 20, .6)";
      context.fillRect(x, y, right - x, bottom - y);
    }
    if (this.polygon.length) {
      context.beginPath();
      this.polygon.forEach((p, i) => { const [x, y] = viewer.on(p.px, p.py); i ? context.lineTo(x, y) : context.moveTo(x, y); });
      if (this.hover) context.lineTo(...viewer.on(this.hover.px, this.hover.py));
      context.strokeStyle = "#000"; context.lineWidth = 3 * ratio; context.stroke();
      context.strokeStyle = "#fff"; context.lineWidth = 1.5 * ratio; context.stroke();
      for (const p of this.polygon) { const [x, y] = viewer.on(p.px, p.py); context.fillStyle = "#fff"; context.fillRect(x - 3 * ratio, y - 3 * ratio, 6 * ratio, 6 * ratio); }
    }
    if (this.hover && (this.tool === "brush" || this.tool === "eraser")) {
      const [x, y] = viewer.on(this.hover.px, this.hover.py), r = Math.max(2 * ratio, this.size / 2 * viewer.scale);
      for (const [colour, width] of [["rgba(0,0,0,.8)", 3], ["#fff", 1.3]]) {
        context.beginPath(); context.arc(x, y, r, 0, 2 * Math.PI); context.strokeStyle = colour; context.lineWidth = width * ratio; context.stroke();
      }
    }
    if (this.key) {
      const [x, y] = viewer.on(this.key.px, this.key.py);
      for (const [colour, width] of [["#000", 4], ["#fff", 1.6]]) {
        context.beginPath(); context.moveTo(x - 14 * ratio, y); context.lineTo(x + 14 * ratio, y); context.moveTo(x, y - 14 * ratio); context.lineTo(x, y + 14 * ratio);
        context.strokeStyle = colour; context.lineWidth = width * ratio; context.stroke();
      }
    }
  }
}
