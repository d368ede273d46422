// One graph on a canvas: drawn where it is seen, panned, zoomed, pointed at. Places come from the page's data.
const WIDE = 216, HIGH = 42, MARGIN = 48, STRIP = 12;
const NEAREST = 2.5, FARTHEST = 0.03, TEXT_FROM = 0.5, NAME_FROM = 0.27, ROUND_FROM = 0.25; // scales: what is drawn from which on
const SHADES = [["same", "rule-strong"], ["changed", "focus"], ["weights", "focus"], ["gone", "was"], ["new", "is"]];
const still = matchMedia("(prefers-reduced-motion: reduce)");

class Pane {
  // side: what the data says of one graph. events: {hover, select, keys}, called with the pane.
  constructor(canvas, side, events, widest) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.side = side;
    this.events = events;
    this.widest = widest; // of both graphs, so that they begin at one scale
    this.calls = side.calls;
    this.x = 0; this.y = -MARGIN; this.scale = 1; // of the graph's point in the upper left corner
    this.hovered = -1; this.selected = -1;
    this.marked = new Set(); this.found = new Set();
    this.labels = new Map(); this.names = new Map(); // texts cut to their boxes; widths of operators
    this.pointers = new Map();
    this.colours = {};
    this.outgoing = this.sortSegments();
    this.readColours();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  sortSegments() {
    const found = new Map(), s = this.side.segments;
    for (let i = 0; i < s.length; i += 6) {
      for (const end of s[i + 1] < 0 ? [s[i]] : [s[i], s[i + 1]]) {
        if (!found.has(end)) found.set(end, []);
        found.get(end).push(i);
      }
    }
    return found;
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["paper", "surface", "sunk", "ink", "soft", "faint", "rule", "rule-strong", "was", "was-wash", "is", "is-wash",
      "focus", "mark", "layer", "norm", "activation", "pool", "merge", "gate", "other"]) {
      this.colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
    this.sans = getComputedStyle(document.body).fontFamily;
    this.labels.clear(); this.names.clear(); this.strip = null;
    this.redraw();
  }

  // ---- where it is looked at ----

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const first = !this.width;
    this.ratio = window.devicePixelRatio || 1;
    this.width = box.width; this.height = box.height;
    this.canvas.width = Math.round(box.width * this.ratio);
    this.canvas.height = Math.round(box.height * this.ratio);
    this.strip = null;
    if (first) this.start(); else this.clamp();
    this.draw();
  }

  get room() { return this.width - STRIP; }

  start() {
    this.scale = Math.min(1, Math.max(0.8, this.room / (this.widest + 2 * MARGIN)));
    this.x = this.side.width / 2 - this.room / this.scale / 2;
    this.y = -MARGIN / 2;
    const first = this.calls.length ? this.calls[0] : null;
    if (first && this.side.width * this.scale > this.room) this.x = first[AT_X] + WIDE / 2 - this.room / this.scale / 2;
    this.clamp();
  }

  fit() {
    const k = Math.min((this.room - 24) / (this.side.width || 1), (this.height - 24) / (this.side.height || 1));
    this.scale = Math.min(1, Math.max(k, FARTHEST));
    this.x = this.side.width / 2 - this.room / this.scale / 2;
    this.y = Math.min(this.y, this.side.height / 2 - this.height / this.scale / 2); // of a long graph, from where it was
    this.clamp();
    this.redraw();
  }

  // Keeps the graph in sight. Returns whether it moved anything.
  clamp() {
    const before = [this.x, this.y], edge = MARGIN / Math.min(1, this.scale);
    const axis = (at, size, view) => size + 2 * edge <= view ? (size - view) / 2 : Math.min(Math.max(at, -edge), size + edge - view);
    this.x = axis(this.x, this.side.width, this.room / this.scale);
    this.y = axis(this.y, this.side.height, this.height / this.scale);
    return before[0] !== this.x || before[1] !== this.y;
  }

  pan(dx, dy) {
    const x = this.x, y = this.y;
    this.x += dx / this.scale; this.y += dy / this.scale;
    this.clamp();
    this.redraw();
    return Math.abs(x - this.x) + Math.abs(y - this.y) > 0.01;
  }

  zoom(factor, px = this.room / 2, py = this.height / 2) {
    const k = Math.min(NEAREST, Math.max(FARTHEST, this.scale * factor));
    this.x += px / this.scale - px / k;
    this.y += py / this.scale - py / k;
    this.scale = k;
    this.clamp();
    this.redraw();
  }

  glide(x, y) {
    cancelAnimationFrame(this.gliding);
    const from = [this.x, this.y], start = performance.now(), time = still.matches ? 0 : 220;
    const step = (now) => {
      const t = time ? Math.min(1, Math.max(0, (now - start) / time)) : 1, ease = 1 - (1 - t) ** 3;
      this.x = from[0] + (x - from[0]) * ease; this.y = from[1] + (y - from[1]) * ease;
      this.clamp();
      this.draw();
      if (t < 1) this.gliding = requestAnimationFrame(step);
    };
    this.gliding = requestAnimationFrame(step);
  }

  sees(i) {
    const c = this.calls[i], x = (c[AT_X] - this.x) * this.scale, y = (c[AT_Y] - this.y) * this.scale;
    return x + WIDE * this.scale > 0 && x < this.room && y > 0 && y + HIGH * this.scale < this.height;
  }

  centre(i) {
    const c = this.calls[i];
    if (this.scale < TEXT_FROM) this.scale = 0.8;
    this.glide(c[AT_X] + WIDE / 2 - this.room / this.scale / 2, c[AT_Y] + HIGH / 2 - this.height / this.scale / 2);
  }

  at(px, py) {
    const x = this.x + px / this.scale, y = this.y + py / this.scale;
    return this.calls.findIndex((c) => x >= c[AT_X] && x <= c[AT_X] + WIDE && y >= c[AT_Y] && y <= c[AT_Y] + HIGH);
  }

  // ---- drawing ----

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    if (!this.width) return;
    const g = this.context, k = this.scale, r = this.ratio, c = this.colours;
    g.setTransform(r, 0, 0, r, 0, 0);
    g.fillStyle = c.sunk;
    g.fillRect(0, 0, this.width, this.height);
    g.save();
    g.beginPath(); g.rect(0, 0, this.room, this.height); g.clip();
    g.setTransform(r * k, 0, 0, r * k, -this.x * r * k, -this.y * r * k);
    const view = [this.x, this.y, this.x + this.room / k, this.y + this.height / k];
    this.edges(g, null, c["rule-strong"], Math.max(1.1, 0.7 / k), view);
    const own = this.hovered >= 0 ? this.hovered : this.selected;
    if (own >= 0) this.edges(g, this.outgoing.get(own) || [], c.ink, Math.max(1.6, 1 / k), view);
    const seen = [];
    for (let i = 0; i < this.calls.length; i++) {
      const n = this.calls[i];
      if (n[AT_Y] <= view[3] && n[AT_Y] + HIGH >= view[1] && n[AT_X] <= view[2] && n[AT_X] + WIDE >= view[0]) seen.push(i);
    }
    if (k < ROUND_FROM) this.specks(g, seen, k); else for (const i of seen) this.box(g, i, this.calls[i], k);
    g.restore();
    this.overview(g);
  }

  edges(g, which, colour, width, view) {
    const s = this.side.segments;
    g.beginPath();
    const one = (i) => {
      const x1 = s[i + 2], y1 = s[i + 3], x2 = s[i + 4], y2 = s[i + 5];
      if (y1 > view[3] || y2 < view[1] || Math.max(x1, x2) < view[0] || Math.min(x1, x2) > view[2]) return;
      g.moveTo(x1, y1);
      if (x1 === x2) { g.lineTo(x2, y2); return; }
      const bend = Math.min((y2 - y1) / 2, 60);
      g.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
    };
    if (which) which.forEach(one); else for (let i = 0; i < s.length; i += 6) one(i);
    g.strokeStyle = colour;
    g.lineWidth = width;
    g.stroke();
  }

  // From far away: all calls of one status in one go.
  specks(g, seen, k) {
    const of = (status) => seen.filter((i) => STATUSES[this.calls[i][STATUS]] === status);
    const paths = [...SHADES.map(([status, colour]) => [of(status), colour]),
      [seen.filter((i) => this.marked.has(i) || this.found.has(i) || i === this.selected || i === this.hovered), "ink"]];
    for (const [calls, colour] of paths) {
      g.beginPath();
      for (const i of calls) g.rect(this.calls[i][AT_X], this.calls[i][AT_Y], WIDE, HIGH);
      g.fillStyle = g.strokeStyle = this.colours[colour];
      g.lineWidth = 1.2 / k;
      if (colour === "ink") g.stroke(); else g.fill();
    }
  }

  box(g, i, n, k) {
    const c = this.colours, status = STATUSES[n[STATUS]], end = n[KIND] <= LAST_END;
    const tint = status === "gone" ? "was" : status === "new" ? "is" : "", x = n[AT_X], y = n[AT_Y];
    g.beginPath();
    if (g.roundRect) g.roundRect(x, y, WIDE, HIGH, end ? 21 : 6); else g.rect(x, y, WIDE, HIGH);
    g.fillStyle = this.found.has(i) ? c.mark : tint ? c[`${tint}-wash`] : c.surface;
    g.fill();
    const marked = this.marked.has(i), chosen = i === this.selected || i === this.hovered;
    const changed = status === "changed" || status === "weights";
    g.strokeStyle = chosen || marked ? c.ink : tint ? c[tint] : changed ? c.focus : c["rule-strong"];
    g.lineWidth = (chosen ? 2.4 : marked ? 1.9 : 1) * Math.max(1, 0.7 / k);
    if (status === "weights") g.setLineDash([4, 3]);
    g.stroke();
    g.setLineDash([]);
    if (!end) { g.fillStyle = c[KINDS[n[KIND]]]; g.fillRect(x + 6, y + 9, 3, HIGH - 18); }
    if (k >= TEXT_FROM) this.text(g, i, n, x, y, end); else if (k >= NAME_FROM) this.name(g, i, n, x, y, k);
  }

  // From further away: the operator alone, in letters that can still be read.
  name(g, i, n, x, y, k) {
    let label = this.names.get(i);
    if (label === undefined) { g.font = `600 12px ${this.sans}`; label = g.measureText(n[OP].slice(0, 60)).width; this.names.set(i, label); }
    const size = 10 / k, room = WIDE - 26, width = label * size / 12;
    const text = width <= room ? n[OP] : `${n[OP].slice(0, Math.max(1, Math.floor(n[OP].length * room / width) - 1))}…`;
    g.font = `600 ${size}px ${this.sans}`;
    g.textBaseline = "middle";
    g.fillStyle = this.colours.ink;
    g.fillText(text, x + 18, y + HIGH / 2);
  }

  text(g, i, n, x, y, end) {
    let label = this.labels.get(i);
    if (!label) { label = this.measure(g, n, end); this.labels.set(i, label); }
    const c = this.colours;
    g.textBaseline = "alphabetic";
    g.font = `600 12.5px ${this.sans}`; g.fillStyle = c.ink;
    g.fillText(label[0], x + 16, y + 18);
    g.font = `11.5px ${this.sans}`; g.fillStyle = c.soft;
    if (label[1]) g.fillText(label[1], x + 16 + label[3], y + 18);
    g.fillText(label[2], x + 16, y + 33);
    if (label[4]) { g.fillStyle = c.faint; g.fillText(label[4], x + WIDE - 10 - label[5], y + 33); }
  }

  // The texts of a call, cut to its box: operator, settings, shape, its width, module, its width.
  measure(g, n, end) {
    const room = WIDE - 28, shape = n[SHAPE].replaceAll("x", "×");
    g.font = `600 12.5px ${this.sans}`;
    const op = cut(g, n[OP], room), used = g.measureText(op).width + 6;
    g.font = `11.5px ${this.sans}`;
    const weight = n[WEIGHTS].length ? n[WEIGHTS][0][1].replaceAll("x", "×") : "";
    const settings = [weight, n[SETTINGS]].filter(Boolean).join(", ");
    const second = room - used > 24 ? cut(g, settings, room - used) : "";
    const sized = cut(g, shape, room), left = room - g.measureText(sized).width - 10;
    const module = left > 36 ? cutStart(g, n[MODULE], left) : "";
    return [op, second, sized, used, module, g.measureText(module).width];
  }

  overview(g) {
    const c = this.colours, left = this.room, k = this.height / (this.side.height || 1), thick = Math.max(1, HIGH * k);
    this.strip ??= this.drawStrip(k, thick);
    g.drawImage(this.strip, left, 0, STRIP, this.height);
    g.fillStyle = c.ink;
    for (const i of [...this.marked, ...this.found]) g.fillRect(left + 1, this.calls[i][AT_Y] * k, STRIP - 2, Math.max(2, thick));
    g.globalAlpha = 0.14;
    g.fillRect(left, Math.max(0, this.y * k), STRIP, Math.min(this.height, Math.max(6, this.height / this.scale * k)));
    g.globalAlpha = 1;
  }

  // The whole graph in a strip, which stays as it is while the graph moves.
  drawStrip(k, thick) {
    const strip = document.createElement("canvas");
    strip.width = STRIP * this.ratio; strip.height = this.height * this.ratio;
    const g = strip.getContext("2d");
    g.scale(this.ratio, this.ratio);
    g.fillStyle = this.colours.paper; g.fillRect(0, 0, STRIP, this.height);
    for (const [status, colour] of SHADES) {
      g.fillStyle = this.colours[colour];
      for (const n of this.calls) if (STATUSES[n[STATUS]] === status) g.fillRect(3, n[AT_Y] * k, STRIP - 6, thick);
    }
    return strip;
  }

  // ---- pointing ----

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (e) => {
      const [x, y] = this.place(e);
      canvas.setPointerCapture(e.pointerId);
      cancelAnimationFrame(this.gliding);
      this.pointers.set(e.pointerId, [x, y]);
      this.moved = 0;
      this.jumping = x > this.room;
      if (this.jumping) this.jump(y);
    });
    canvas.addEventListener("pointermove", (e) => this.move(e));
    canvas.addEventListener("pointerup", (e) => {
      const [x, y] = this.place(e);
      this.pointers.delete(e.pointerId);
      if (!this.jumping && this.moved < 5) this.events.select(this, this.at(x, y));
    });
    canvas.addEventListener("pointercancel", (e) => this.pointers.delete(e.pointerId));
    canvas.addEventListener("pointerleave", () => this.events.hover(this, -1));
    canvas.addEventListener("dblclick", (e) => this.zoom(1.6, ...this.place(e)));
    canvas.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
    canvas.addEventListener("keydown", (e) => this.events.keys(this, e));
  }

  move(e) {
    const [x, y] = this.place(e), last = this.pointers.get(e.pointerId);
    if (!last) { this.events.hover(this, x > this.room ? -1 : this.at(x, y)); return; }
    if (this.jumping) { this.jump(y); return; }
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== e.pointerId)[1];
      const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      if (span(last) > 1) this.zoom(span([x, y]) / span(last), (x + other[0]) / 2, (y + other[1]) / 2);
    } else this.pan(last[0] - x, last[1] - y);
    this.moved += Math.abs(x - last[0]) + Math.abs(y - last[1]);
    this.pointers.set(e.pointerId, [x, y]);
  }

  jump(y) {
    this.y = y / this.height * this.side.height - this.height / this.scale / 2;
    this.clamp();
    this.redraw();
  }

  // A wheel that was scrolling the page goes on scrolling it.
  wheel(e) {
    if (e.timeStamp - Pane.scrolled < 250) { Pane.scrolled = e.timeStamp; return; }
    const unit = e.deltaMode === 1 ? 24 : e.deltaMode === 2 ? this.height : 1;
    cancelAnimationFrame(this.gliding);
    if (e.ctrlKey || e.metaKey) {
      this.zoom(Math.exp(-e.deltaY * unit / 300), ...this.place(e));
      e.preventDefault();
    } else if (this.pan((e.shiftKey ? e.deltaY : e.deltaX) * unit, e.shiftKey ? 0 : e.deltaY * unit)) e.preventDefault();
  }
}
Pane.scrolled = -1e9;
addEventListener("wheel", (e) => { if (!e.target.closest || !e.target.closest("canvas")) Pane.scrolled = e.timeStamp; }, { passive: true });

// A text cut to a width, at its end or at its start.
function cut(g, text, room) {
  if (g.measureText(text.slice(0, 200)).width <= room && text.length <= 200) return text;
  let low = 0, high = Math.min(text.length, 200);
  while (low < high) { const m = (low + high + 1) >> 1; if (g.measureText(`${text.slice(0, m)}…`).width <= room) low = m; else high = m - 1; }
  return low ? `${text.slice(0, low)}…` : "";
}
function cutStart(g, text, room) {
  if (g.measureText(text.slice(-200)).width <= room && text.length <= 200) return text;
  let low = 0, high = Math.min(text.length, 200);
  while (low < high) { const m = (low + high + 1) >> 1; if (g.measureText(`…${text.slice(-m)}`).width <= room) low = m; else high = m - 1; }
  return low ? `…${text.slice(-low)}` : "";
}
