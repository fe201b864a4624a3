// A picture one can zoom and pan, with layers over it. Positions are pixels of the picture.

const LARGEST = 4096;

export class Viewer {
  constructor(host, label) {
    this.host = host;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", label);
    this.wait = document.createElement("div");
    this.wait.className = "wait";
    host.replaceChildren(this.canvas, this.wait);
    this.scale = 1; this.x = 0; this.y = 0;
    this.width = 0; this.height = 0;
    this.layers = [];
    this.over = null;
    this.cursor = null;
    this.onview = () => {};
    this.space = false;
    this.watching = new ResizeObserver(() => this.resized());
    this.watching.observe(host);
    this.listen();
    this.resized();
  }

  close() { this.watching.disconnect(); this.closed = true; }

  resized() {
    const ratio = window.devicePixelRatio || 1, box = this.host.getBoundingClientRect();
    const first = !this.canvas.dataset.sized && box.width > 0;
    this.canvas.width = Math.max(1, Math.round(box.width * ratio));
    this.canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.ratio = ratio;
    if (first) { this.canvas.dataset.sized = "1"; this.fit(); }
    this.draw();
  }

  show(base, width, height) {
    this.base = base; this.width = width; this.height = height;
    this.fit();
  }

  fit() {
    if (!this.width) return;
    const room = 16 * this.ratio;
    this.scale = Math.max(.001, Math.min((this.canvas.width - room) / this.width, (this.canvas.height - room) / this.height));
    this.x = (this.canvas.width - this.width * this.scale) / 2;
    this.y = (this.canvas.height - this.height * this.scale) / 2;
    this.changed();
  }

  zoom(factor, at = null) {
    const [px, py] = at || [this.canvas.width / 2, this.canvas.height / 2];
    const scale = Math.min(64 * this.ratio, Math.max(.02, this.scale * factor));
    this.x = px - (px - this.x) * scale / this.scale;
    this.y = py - (py - this.y) * scale / this.scale;
    this.scale = scale;
    this.changed();
  }

  exact() { this.zoom(this.ratio / this.scale); }

  pan(dx, dy) { this.x += dx; this.y += dy; this.changed(); }

  // Brings a pixel into sight.
  reveal(px, py) {
    const x = this.x + px * this.scale, y = this.y + py * this.scale, edge = 40 * this.ratio;
    if (x < edge) this.x += edge - x; if (x > this.canvas.width - edge) this.x -= x - this.canvas.width + edge;
    if (y < edge) this.y += edge - y; if (y > this.canvas.height - edge) this.y -= y - this.canvas.height + edge;
    this.changed();
  }

  changed() { this.onview(); this.draw(); }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const sx = (event.clientX - box.left) * this.ratio, sy = (event.clientY - box.top) * this.ratio;
    return { sx, sy, px: (sx - this.x) / this.scale, py: (sy - this.y) / this.scale };
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { sx, sy } = this.at(event);
      if (event.shiftKey) this.pan(-event.deltaY, 0);
      else this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? .01 : .0016)), [sx, sy]);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const place = this.at(event);
      if (event.button === 1 || event.button === 2 || this.space || this.panning) { this.drag = place; event.preventDefault(); return; }
      if (event.button === 0 && this.ondown) this.ondown(place, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const place = this.at(event);
      if (this.drag) { this.pan(place.sx - this.drag.sx, place.sy - this.drag.sy); this.drag = place; return; }
      if (this.onmove) this.onmove(place, event);
    });
    const up = (event) => { if (this.drag) { this.drag = null; return; } if (this.onup) this.onup(this.at(event), event); };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerleave", () => { if (this.onleave) this.onleave(); });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const keys = { "+": () => this.zoom(1.4), "=": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), "0": () => this.fit() };
      if (keys[event.key] && !this.keepsDigits?.(event.key)) { keys[event.key](); event.preventDefault(); }
    });
  }

  draw() {
    if (this.pending || this.closed) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.paint(); });
  }

  paint() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.base) return;
    context.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    // Single pixels are shown as squares.
    context.imageSmoothingEnabled = this.scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.base, 0, 0);
    for (const layer of this.layers) {
      if (!layer.visible || !layer.canvas) continue;
      context.globalAlpha = layer.opacity;
      context.drawImage(layer.canvas, 0, 0);
    }
    context.globalAlpha = 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (this.over) this.over(context);
  }

  // Position of a pixel on the canvas.
  on(px, py) { return [this.x + px * this.scale, this.y + py * this.scale]; }
}

// Makes a canvas of grey or coloured bytes.
export function surface(data, width, height, channels) {
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), target = new Uint32Array(image.data.buffer);
  if (channels === 1) for (let i = 0; i < target.length; i++) { const v = data[i]; target[i] = 0xff000000 | v << 16 | v << 8 | v; }
  else for (let i = 0, j = 0; i < target.length; i++, j += 3) target[i] = 0xff000000 | data[j + 2] << 16 | data[j + 1] << 8 | data[j];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Colours of the values of a mask as 32-bit words; what is no class is clear.
export function lookup(classes) {
  const table = new Uint32Array(256);
  for (const one of classes) {
    const word = parseInt(one.colour.slice(1), 16);
    table[one.value] = (0xff000000 | (word & 255) << 16 | (word >> 8 & 255) << 8 | word >> 16) >>> 0;
  }
  return table;
}

export function coloured(mask, width, height, table) {
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), target = new Uint32Array(image.data.buffer);
  for (let i = 0; i < target.length; i++) target[i] = table[mask[i]];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Uncertainty from clear to red: only what is truly unsure stands out.
export function heat() {
  const table = new Uint32Array(256);
  for (let v = 0; v < 256; v++) {
    const t = v / 255, alpha = Math.round(235 * t * t), green = Math.round(190 * (1 - t)), blue = Math.round(40 * (1 - t));
    table[v] = (alpha << 24 | blue << 16 | green << 8 | 240) >>> 0;
  }
  return table;
}

// The part of a large picture that is worked on: all of it where it is small enough.
export function region(picture, left = 0, top = 0) {
  const width = Math.min(LARGEST, picture.width), height = Math.min(LARGEST, picture.height);
  return { left: Math.max(0, Math.min(picture.width - width, left)), top: Math.max(0, Math.min(picture.height - height, top)), width, height };
}

export function isPart(picture) { return picture.width > LARGEST || picture.height > LARGEST; }
