// The page at work: linked panes, search, the tree of modules, details, filters, the theme.

// ---- the graphs ----

class Graphs {
  constructor(data) {
    this.data = data;
    const widest = Math.max(...data.sides.map((s) => s.width));
    this.panes = [...document.querySelectorAll("#bench canvas")].map((canvas, s) => new Pane(canvas, data.sides[s], {
      hover: (pane, i) => this.hover(pane, i),
      select: (pane, i) => this.select(pane, i),
      keys: (pane, event) => this.keys(pane, event),
    }, widest));
    this.active = this.panes[0];
    this.links = data.sides.map((side) => groupBy(side.calls, (c) => c[LINK]));
    this.names = data.sides.map((side) => new Map(side.calls.map((c, i) => [c[NAME], i])));
    this.rows = [...document.querySelectorAll("#remark-table tbody tr")];
    this.region = -1;
    this.matches = [];
    this.listen();
  }

  other(pane) { return this.panes.find((p) => p !== pane); }
  index(pane) { return this.panes.indexOf(pane); }

  // The calls of the other graph that belong to a call of this one: its region's, its own twin, else its module's.
  counterparts(pane, i) {
    if (i < 0) return [];
    const other = this.other(pane);
    const call = pane.calls[i], linked = this.links[this.index(other)].get(call[LINK]) || [];
    if (call[LINK] >= 0 && linked.length) return linked;
    for (let path = call[MODULE]; path; path = path.slice(0, Math.max(0, path.lastIndexOf(".")))) {
      const found = this.below(other, path);
      if (found.length) return found;
    }
    return [];
  }

  below(pane, path) {
    const found = [];
    pane.calls.forEach((c, i) => { if (!path || c[MODULE] === path || c[MODULE].startsWith(`${path}.`)) found.push(i); });
    return found;
  }

  family(pane, i) {
    const link = pane.calls[i][LINK];
    return link >= 0 && link < this.data.regions ? this.links[this.index(pane)].get(link) : [i];
  }

  hover(pane, i) {
    if (pane.hovered === i) return;
    pane.hovered = i;
    this.mark(pane, i >= 0 ? i : pane.selected, i >= 0);
  }

  // Marks a call's region here and there. If `glides`, the other side comes to where its part of it is.
  mark(pane, i, glides) {
    const other = this.other(pane);
    pane.marked = new Set(i >= 0 ? this.family(pane, i) : []);
    other.marked = new Set(this.counterparts(pane, i));
    other.hovered = -1;
    if (glides && byId("follow").checked && other.marked.size) this.bring(pane, i, other);
    other.redraw();
    this.hint(pane, i);
    pane.redraw();
  }

  // Of the counterparts the one that lies in its region where the call lies in its own.
  bring(pane, i, other) {
    const parts = [...other.marked];
    if (parts.some((p) => other.sees(p))) return;
    const family = this.family(pane, i), share = Math.max(0, family.indexOf(i)) / Math.max(1, family.length - 1);
    other.centre(parts[Math.round(share * (parts.length - 1))]);
  }

  hint(pane, i) {
    for (const p of this.panes) p.canvas.nextElementSibling.textContent = "";
    if (i < 0) return;
    const call = pane.calls[i], row = this.remarks(pane, i).find((r) => r.dataset.kind === "passed");
    const told = row ? `${row.dataset.rule}: ${row.querySelector(".message").textContent}` : "";
    pane.canvas.nextElementSibling.textContent = [call[MODULE] || call[OP], told].filter(Boolean).join(" · ");
  }

  remarks(pane, i) {
    const call = pane.calls[i], region = call[LINK] >= 0 && call[LINK] < this.data.regions ? String(call[LINK]) : null;
    return this.rows.filter((r) => (region !== null && r.dataset.region === region) || r.dataset.node === call[NAME]
      || (call[MODULE] && r.dataset.kind !== "passed" && r.dataset.module === call[MODULE]));
  }

  select(pane, i) {
    this.active = pane;
    for (const p of this.panes) p.selected = p === pane ? i : -1;
    this.mark(pane, i, true);
    this.details(pane, i);
  }

  show(pane, i) {
    this.select(pane, i);
    if (i >= 0 && !pane.sees(i)) pane.centre(i);
  }

  // ---- details ----

  details(pane, i) {
    const box = byId("details");
    box.replaceChildren();
    box.hidden = i < 0;
    if (i < 0) return;
    const c = pane.calls[i], title = make("div", "", { class: "title" }), close = make("button", "×", { type: "button", class: "plain", "aria-label": "Close" });
    close.addEventListener("click", () => this.select(pane, -1));
    title.append(make("h3", c[OP]), close);
    const facts = [["side", pane.side.tag], ["module", c[MODULE]], ["shape", c[SHAPE].replaceAll("x", " × ")], ["dtype", c[DTYPE]],
      ["settings", c[SETTINGS]], ["MACs", c[MACS] ? number(c[MACS]) : ""], ["parameters", c[PARAMS] ? number(c[PARAMS]) : ""],
      ["name", c[NAME]], ["status", pane.side.words[c[STATUS]]]];
    const list = make("dl");
    for (const [term, text] of facts) if (text) list.append(make("dt", term), make("dd", text));
    box.append(title, list);
    if (c[WEIGHTS].length) this.group(box, "Weights", c[WEIGHTS].map((w) => {
      const item = make("li", w[0]);
      item.append(make("div", `${w[1].replaceAll("x", " × ")} ${w[2]}${w[3] === null ? "" : `, from ${w[3]} to ${w[4]}`}`, { class: "count" }));
      return item;
    }));
    const rows = this.remarks(pane, i);
    if (rows.length) this.group(box, "Remarks", rows.slice(0, 30).map((r) => {
      const cells = [...r.cells].map((d) => d.textContent), item = make("li");
      item.append(make("span", `${cells[0]} `, { class: `kind ${cells[0]}` }), `${cells[1]}: ${cells[3]}`);
      if (cells[4]) item.append(make("div", `error ${cells[4]}${cells[5] ? `, bound ${cells[5]}` : ""}`, { class: "count" }));
      return item;
    }));
    const other = this.other(pane), linked = this.counterparts(pane, i);
    if (linked.length) this.group(box, `In ${other.side.tag.toLowerCase()}`, this.buttons(other, linked));
    const near = (from, to) => [...new Set(pane.side.edges.filter((e) => e[from] === i).map((e) => e[to]))];
    const reads = near(1, 0), readers = near(0, 1);
    if (reads.length) this.group(box, "Reads", this.buttons(pane, reads));
    if (readers.length) this.group(box, "Read by", this.buttons(pane, readers));
  }

  group(box, title, items) {
    const list = make("ul");
    list.append(...items);
    box.append(make("h4", title), list);
  }

  buttons(pane, indices) {
    const items = indices.slice(0, 40).map((j) => {
      const item = make("li"), c = pane.calls[j], button = make("button", [c[OP], c[MODULE]].filter(Boolean).join("  "), { type: "button" });
      button.addEventListener("click", () => { this.show(pane, j); pane.canvas.focus({ preventScroll: true }); });
      item.append(button);
      return item;
    });
    if (indices.length > 40) items.push(make("li", `and ${indices.length - 40} more`));
    return items;
  }

  // ---- moving about ----

  step(pane, by) {
    const n = pane.calls.length;
    if (n) this.show(pane, pane.selected < 0 ? (by > 0 ? 0 : n - 1) : Math.min(n - 1, Math.max(0, pane.selected + by)));
  }

  nextRegion(by) {
    const n = this.data.regions;
    if (!n) return;
    this.region = ((this.region < 0 && by < 0 ? 0 : this.region) + by + n) % n;
    this.goToRegion(this.region);
  }

  goToRegion(region) {
    const first = (pane, calls) => calls.find((i) => STATUSES[pane.calls[i][STATUS]] !== "same") ?? calls[0];
    const found = this.panes.map((p, s) => first(p, this.links[s].get(region) || []));
    const changed = (i, s) => i !== undefined && STATUSES[this.panes[s].calls[i][STATUS]] !== "same";
    const s = found.some(changed) ? found.findIndex(changed) : found.findIndex((i) => i !== undefined);
    if (s < 0) return;
    this.region = region;
    this.select(this.panes[s], found[s]);
    this.panes.forEach((p, t) => { if (found[t] !== undefined && !p.sees(found[t])) p.centre(found[t]); });
  }

  goToModule(path) {
    const found = this.panes.map((p) => this.below(p, path));
    this.select(this.active, -1);
    this.panes.forEach((p, s) => { p.marked = new Set(path ? found[s] : []); if (found[s].length) p.centre(found[s][0]); p.redraw(); });
  }

  goToRemark(row) {
    byId("graphs").scrollIntoView({ block: "start" });
    if (row.dataset.region !== undefined) { this.goToRegion(Number(row.dataset.region)); return; }
    for (const s of [this.panes.length - 1, 0]) {
      const i = this.names[s].get(row.dataset.node);
      if (i !== undefined) { this.show(this.panes[s], i); return; }
    }
    this.goToModule(row.dataset.module);
  }

  keys(pane, e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    this.active = pane;
    const far = e.shiftKey ? pane.height * 0.9 : 60;
    const actions = {
      ArrowUp: () => pane.pan(0, -far), ArrowDown: () => pane.pan(0, far), ArrowLeft: () => pane.pan(-far, 0), ArrowRight: () => pane.pan(far, 0),
      PageUp: () => pane.pan(0, -pane.height * 0.9), PageDown: () => pane.pan(0, pane.height * 0.9),
      Home: () => pane.pan(0, -1e9), End: () => pane.pan(0, 1e9),
      "+": () => pane.zoom(1.25), "=": () => pane.zoom(1.25), "-": () => pane.zoom(0.8), 0: () => pane.fit(),
      j: () => this.step(pane, 1), k: () => this.step(pane, -1), n: () => this.nextRegion(1), p: () => this.nextRegion(-1),
      Escape: () => this.select(pane, -1),
    };
    if (actions[e.key]) { actions[e.key](); e.preventDefault(); }
  }

  search(text) {
    const wanted = text.trim().toLowerCase();
    this.matches = []; this.match = -1;
    const counts = this.panes.map((p, s) => {
      p.found = new Set();
      if (wanted) p.calls.forEach((c, i) => { if (this.text(s, i).includes(wanted)) p.found.add(i); });
      for (const i of p.found) this.matches.push([p, i]);
      p.redraw();
      return `${p.found.size} ${p.side.tag.toLowerCase()}`;
    });
    byId("found").textContent = wanted ? (this.matches.length ? counts.join(", ") : "nothing found") : "";
  }

  text(s, i) {
    this.texts ??= this.panes.map(() => []);
    const c = this.panes[s].calls[i];
    return this.texts[s][i] ??= [c[OP], c[SETTINGS], c[MODULE], c[SHAPE], c[DTYPE], c[NAME], ...c[WEIGHTS].map((w) => w[0])].join("\n").toLowerCase();
  }

  nextMatch(by) {
    const n = this.matches.length;
    if (!n) return;
    this.match = (this.match + by + n) % n;
    const [pane, i] = this.matches[this.match];
    this.show(pane, i);
    pane.centre(i);
  }

  listen() {
    const actions = {
      tree: (button) => { const box = byId("tree-box"); box.hidden = !box.hidden; button.setAttribute("aria-expanded", String(!box.hidden)); },
      next: () => this.nextRegion(1), previous: () => this.nextRegion(-1),
      in: () => this.panes.forEach((p) => p.zoom(1.25)), out: () => this.panes.forEach((p) => p.zoom(0.8)), fit: () => this.panes.forEach((p) => p.fit()),
    };
    for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => actions[button.dataset.do](button));
    if (matchMedia("(max-width: 900px)").matches) document.querySelector("[data-do=tree]").click();
    const field = byId("search");
    field.addEventListener("input", () => this.search(field.value));
    field.addEventListener("keydown", (e) => {
      if (e.key === "Enter") { this.nextMatch(e.shiftKey ? -1 : 1); e.preventDefault(); }
      if (e.key === "Escape") { field.value = ""; this.search(""); field.blur(); }
    });
    addEventListener("keydown", (e) => {
      if (e.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) { field.focus(); e.preventDefault(); }
    });
    for (const row of this.rows) for (const to of row.querySelectorAll(".to")) to.addEventListener("click", () => this.goToRemark(row));
    byId("calls").addEventListener("toggle", () => this.tables(), { once: true });
  }

  // What the pictures show, as tables: for screen readers, and for those who copy from it.
  tables() {
    const box = document.querySelector("#calls .tables");
    for (const pane of this.panes) {
      const wide = make("div", "", { class: "wide" }), table = make("table"), head = make("tr"), body = make("tbody");
      for (const name of ["call", "module", "shape", "dtype", "MACs", "parameters", "reads", "status"]) head.append(make("th", name, { scope: "col" }));
      const reads = groupBy(pane.side.edges, (e) => e[1]);
      pane.calls.forEach((c, i) => {
        const row = make("tr"), from = (reads.get(i) || []).map((k) => pane.calls[pane.side.edges[k][0]][NAME]);
        row.append(make("th", `${c[NAME]}: ${c[OP]}${c[SETTINGS] ? `(${c[SETTINGS]})` : ""}`, { scope: "row" }));
        for (const text of [c[MODULE], c[SHAPE].replaceAll("x", " × "), c[DTYPE], c[MACS] ? number(c[MACS]) : "", c[PARAMS] ? number(c[PARAMS]) : "", from.join(", "), pane.side.words[c[STATUS]]]) row.append(make("td", text));
        body.append(row);
      });
      const top = make("thead");
      top.append(head);
      table.append(make("caption", `${pane.side.tag}: ${pane.side.told}`), top, body);
      wide.append(table);
      box.append(wide);
    }
  }
}

function groupBy(items, key) {
  const found = new Map();
  items.forEach((item, i) => { const k = key(item); if (!found.has(k)) found.set(k, []); found.get(k).push(i); });
  return found;
}

// ---- the tree of modules ----

class Tree {
  // node: [path, calls before, calls after, children]
  constructor(root, choose) {
    this.box = byId("tree");
    this.choose = choose;
    const top = this.item(root, 1);
    this.box.append(top);
    this.open(top, true);
    top.tabIndex = 0;
    this.box.addEventListener("keydown", (e) => this.keys(e));
  }

  item(node, level) {
    const [path, before, after, children] = node;
    const item = make("div", "", { role: "treeitem", "aria-level": level, "aria-selected": "false" }), line = make("div", "", { class: "node" });
    const fold = make("span", children.length ? "▸" : "", { class: "fold", "aria-hidden": "true" });
    const name = path.slice(path.lastIndexOf(".") + 1) || (path ? path : "the network");
    line.append(fold, make("span", name, { class: "label", title: path }), make("span", before === after ? `${after}` : `${before} → ${after}`, { class: "figures", title: "calls" }));
    item.append(line);
    item.tabIndex = -1;
    item.node = node;
    if (children.length) item.setAttribute("aria-expanded", "false");
    line.addEventListener("click", (e) => {
      if (e.target === fold) this.open(item, item.getAttribute("aria-expanded") !== "true"); else this.take(item);
      this.focus(item);
    });
    line.addEventListener("dblclick", () => this.open(item, item.getAttribute("aria-expanded") !== "true"));
    return item;
  }

  open(item, wanted) {
    const children = item.node[3];
    if (!children.length) return;
    item.setAttribute("aria-expanded", String(wanted));
    item.querySelector(".fold").textContent = wanted ? "▾" : "▸";
    let group = item.querySelector(":scope > [role=group]");
    if (!group && wanted) {
      group = make("div", "", { role: "group" });
      group.append(...children.map((child) => this.item(child, Number(item.getAttribute("aria-level")) + 1)));
      item.append(group);
    }
    if (group) group.hidden = !wanted;
  }

  take(item) {
    for (const other of this.box.querySelectorAll("[aria-selected=true]")) other.setAttribute("aria-selected", "false");
    item.setAttribute("aria-selected", "true");
    this.choose(item.node[0]);
  }

  focus(item) {
    for (const other of this.box.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    item.tabIndex = 0;
    item.focus();
  }

  keys(e) {
    const item = e.target.closest("[role=treeitem]"), seen = [...this.box.querySelectorAll("[role=treeitem]")].filter((i) => i.offsetParent);
    const at = seen.indexOf(item), open = item.getAttribute("aria-expanded") === "true";
    const actions = {
      ArrowDown: () => seen[at + 1] && this.focus(seen[at + 1]),
      ArrowUp: () => seen[at - 1] && this.focus(seen[at - 1]),
      ArrowRight: () => open ? seen[at + 1] && this.focus(seen[at + 1]) : this.open(item, true),
      ArrowLeft: () => open ? this.open(item, false) : item.parentElement.closest("[role=treeitem]") && this.focus(item.parentElement.closest("[role=treeitem]")),
      Home: () => this.focus(seen[0]), End: () => this.focus(seen[seen.length - 1]),
      Enter: () => this.take(item), " ": () => this.take(item),
    };
    if (actions[e.key]) { actions[e.key](); e.preventDefault(); e.stopPropagation(); }
  }
}

// ---- remarks, theme, paper ----

function filterRemarks() {
  const form = byId("filters"), rows = [...document.querySelectorAll("#remark-table tbody tr")];
  const apply = () => {
    const kinds = new Set([...form.querySelectorAll("[name=kind]:checked")].map((b) => b.value));
    const rule = form.elements.rule.value, text = form.elements.text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const keeps = kinds.has(row.dataset.kind) && (!rule || row.dataset.rule === rule) && (!text || row.textContent.toLowerCase().includes(text));
      row.hidden = !keeps;
      shown += keeps;
    }
    byId("shown").textContent = `${number(shown)} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (e) => e.preventDefault());
}

function start() {
  const data = byId("data"), graphs = data ? new Graphs(JSON.parse(data.textContent)) : null;
  if (graphs) new Tree(graphs.data.tree, (path) => graphs.goToModule(path));
  if (byId("filters")) filterRemarks();
  const recolour = () => graphs && graphs.panes.forEach((p) => p.readColours());
  const themes = ["auto", "light", "dark"], root = document.documentElement;
  byId("theme").addEventListener("click", (e) => {
    root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % 3];
    e.currentTarget.textContent = `Theme: ${root.dataset.theme}`;
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  matchMedia("print").addEventListener("change", () => graphs && graphs.panes.forEach((p) => { p.readColours(); p.resize(); }));
}
start();
