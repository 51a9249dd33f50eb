"use strict";
// Draws the data block. Text of a model goes in through textContent alone. Long lists are cut into blocks that hold
// elements only while they are near the view.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const inspector = document.getElementById("inspector");
  const MARKS = { accept: "\u2713", reject: "\u2717", discard: "\u2013" };
  const ORIGINS = [
    ["draft", "accepted draft"], ["correction", "correction"], ["bonus", "bonus"], ["plain", "no draft"],
    ["cooldown", "cooldown"],
  ];
  const known = new Set(ORIGINS.map(([name]) => name));
  const TEXT_BLOCK = 200, ROUND_BLOCK = 25, PAGE = 10;

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function svg(tag, attributes = {}, text = null) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== null) node.textContent = text;
    return node;
  }

  // Blocks 0 .. n - 1 of a scrolling box. fill(i) gives the children of block i; a block out of view keeps its height.
  class Blocks {
    constructor(box, n, fill, height) {
      this.fill = fill;
      this.nodes = [];
      this.observer = new IntersectionObserver((entries) => {
        for (const e of entries) e.isIntersecting ? this.open(e.target) : this.shut(e.target);
      }, { root: box, rootMargin: "600px 0px" });
      for (let i = 0; i < n; i++) {
        const node = el("div", { "data-block": i });
        node.style.minHeight = height + "px";
        box.append(node);
        this.nodes.push(node);
        this.observer.observe(node);
      }
    }
    open(node) {
      if (node.childNodes.length) return;
      node.append(...this.fill(Number(node.dataset.block)));
      node.style.minHeight = "";
    }
    shut(node) {
      if (!node.childNodes.length || node.contains(document.activeElement)) return;
      node.style.minHeight = node.offsetHeight + "px";
      node.replaceChildren();
    }
    show(i) {
      this.open(this.nodes[i]);
      return this.nodes[i];
    }
  }

  const percent = (a, b) => (b ? (100 * a / b).toFixed(1) + " %" : "-");
  const originOf = (name) => (known.has(name) ? name : "plain");

  // ------------------------------------------------------------------------------------------ facts and charts

  function facts(side) {
    const list = el("dl");
    for (const [name, value] of side.facts) list.append(el("dt", {}, name), el("dd", {}, value));
    const box = el("section", {}, el("h3", {}, side.label), list);
    for (const note of side.notes) box.append(el("p", { class: "note" }, "Note: " + note));
    return box;
  }

  function legend() {
    const list = el("ul", { class: "legend", "aria-label": "Origin of a token" });
    if (data.sides.some((s) => s.prompt)) list.append(el("li", {}, el("span", { class: "chip prompt" }, "prompt")));
    for (const [name, words] of ORIGINS) list.append(el("li", {}, el("span", { class: "chip " + name }, words)));
    return list;
  }

  function timeChart(sides) {
    const w = 640, h = 180, left = 58, bottom = 24, top = 8;
    const n = Math.max(2, ...sides.map((s) => s.rounds.length));
    const x = (i) => left + (w - left - 8) * i / (n - 1);
    const y = (r) => top + (h - top - bottom) * (1 - r);
    const chart = svg("svg", { class: "wide", viewBox: `0 0 ${w} ${h}`, role: "img",
      "aria-label": "Share of drafted tokens accepted, over the rounds" });
    for (const r of [0, 0.5, 1]) {
      chart.append(svg("line", { class: "grid", x1: left, x2: w - 8, y1: y(r), y2: y(r) }));
      chart.append(svg("text", { x: 4, y: y(r) + 4 }, 100 * r + " %"));
    }
    chart.append(svg("text", { x: left, y: h - 6 }, "0"));
    chart.append(svg("text", { x: (left + w) / 2, y: h - 6, "text-anchor": "middle" }, "round"));
    chart.append(svg("text", { x: w - 8, y: h - 6, "text-anchor": "end" }, String(n - 1)));
    sides.forEach((s, k) => {
      const points = s.over_time.map(([i, r]) => x(i).toFixed(1) + "," + y(r).toFixed(1)).join(" ");
      chart.append(svg("polyline", { class: k ? "b" : "a", points }));
    });
    return el("section", {}, el("h3", {}, "Acceptance over time: accepted of drafted" + (sides.length > 1 ? " (dashed: second run)" : "")),
      chart);
  }

  function positionTable(sides) {
    const tables = el("div", { class: "positions" });
    sides.forEach((s, k) => {
      const head = el("tr");
      for (const name of ["position", "drafted", "accepted", "if reached"]) head.append(el("th", { scope: "col" }, name));
      const body = el("tbody");
      s.per_pos.forEach(([proposed, judged, accepted], i) => body.append(el("tr", {},
        el("th", { scope: "row" }, String(i + 1)), el("td", {}, String(proposed)),
        el("td", {}, percent(accepted, proposed)), el("td", {}, percent(accepted, judged)))));
      const caption = sides.length > 1 ? [el("caption", {}, k ? "second run" : "first run")] : [];
      tables.append(el("table", {}, ...caption, el("thead", {}, head), body));
    });
    const rates = sides.map((s) => s.per_pos.map(([, judged, accepted]) => accepted / Math.max(1, judged)));
    return el("section", {}, el("h3", {}, "Acceptance by draft position"), bars(rates), tables,
      el("p", { class: "soft" }, "If reached: of those whose predecessors were accepted; the bars show it."));
  }

  function bars(rates) {
    const n = Math.max(1, ...rates.map((r) => r.length)), w = 320, h = 120, left = 40, top = 8, tall = 78;
    const chart = svg("svg", { viewBox: `0 0 ${w} ${h}`, "aria-hidden": "true" });
    const y = (r) => top + tall * (1 - r);
    for (const r of [0, 0.5, 1]) {
      chart.append(svg("line", { class: "grid", x1: left, x2: w, y1: y(r), y2: y(r) }));
      chart.append(svg("text", { x: 4, y: y(r) + 4 }, 100 * r + " %"));
    }
    rates.forEach((list, k) => list.forEach((r, i) => {
      const step = (w - left) / n, width = Math.min(40, 0.8 * step / rates.length);
      const x = left + 4 + step * i + k * (width + 2);
      chart.append(svg("rect", { class: k ? "b" : "a", x, y: y(r), width, height: tall * r, "fill-opacity": 0.75 }));
      if (k === 0) chart.append(svg("text", { x: x + width / 2, y: top + tall + 14, "text-anchor": "middle" },
        String(i + 1)));
    }));
    chart.append(svg("text", { x: (left + w) / 2, y: h - 4, "text-anchor": "middle" }, "draft position"));
    return chart;
  }

  // ------------------------------------------------------------------------------------------------ inspector

  function candidates(list, title) {
    const body = el("tbody");
    for (const [id, name, p] of list) {
      const meter = el("meter", { min: 0, max: 1, value: typeof p === "number" ? p : 0, "aria-hidden": "true" });
      body.append(el("tr", {}, el("td", { class: "name" }, name), el("td", {}, String(id)), el("td", {}, String(p)),
        el("td", {}, meter)));
    }
    const head = el("tr", {});
    for (const name of ["candidate", "id", "p", ""]) head.append(el("th", { scope: "col" }, name));
    const box = el("div", {}, el("h3", {}, title), el("table", {}, el("thead", {}, head), body));
    if (list.some(([id, name]) => name === "#" + id)) box.append(el("p", { class: "soft" },
      "#12 is the token with id 12: the trace has no text of it. mtpref trace html -m MODEL names all."));
    return box;
  }

  function draftTitle(d, i) {
    const [, name, verdict, , chance] = d;
    const drawn = chance.length ? `, target p ${chance[0]}, draft q ${chance[1]}, accepted with ${chance[2]}` : "";
    return `draft ${i + 1}: ${name}, ${verdict}${drawn}`;
  }

  function inspect(title, lists) {
    const close = el("button", { class: "close", type: "button", "aria-label": "Close" }, "\u2715");
    close.addEventListener("click", () => { inspector.hidden = true; });
    inspector.replaceChildren(close, el("strong", {}, title), ...lists);
    inspector.hidden = false;
  }

  function inspectDraft(round, i) {
    const d = round.d[i];
    const list = d[3].length ? [candidates(d[3], "The head's candidates")]
      : [el("p", { class: "soft" }, "The trace holds no candidates of this step.")];
    inspect(`round ${round.n}, ${draftTitle(d, i)}`, list);
  }

  function inspectTarget(round) {
    const g = round.g;
    if (!g) return;
    const tie = g[4] ? ", near tie: another engine may well choose the second best" : "";
    const first = round.d[round.a];
    const lists = first ? [candidates(first[3], `The head had drafted ${first[1]}`)] : [];
    inspect(`round ${round.n}, ${g[2]}: ${g[1]} (id ${g[0]}), margin ${g[3]}${tie}`, lists);
  }

  // -------------------------------------------------------------------------------------------------- one run

  class RunView {
    constructor(side, k, parted) {
      this.side = side;
      this.k = k;
      this.parted = parted;
      this.current = 0;
      this.starts = [];
      let n = 0;
      for (const r of side.rounds) { this.starts.push(n); n += r.t; }
      const run = data.sides.length > 1 ? (k ? " of the second run" : " of the first run") : "";
      this.textBox = el("div", { class: "text", tabindex: "0", role: "region", "aria-label": "Text" + run });
      this.roundBox = el("div", { class: "rounds", role: "list", "aria-label": "Rounds" + run });
      this.roundBox.addEventListener("keydown", (event) => this.key(event));
    }
    build() {
      const nText = Math.ceil(this.side.tokens.length / TEXT_BLOCK);
      this.text = new Blocks(this.textBox, nText, (i) => this.spans(i), 240);
      const nRounds = Math.ceil(this.side.rounds.length / ROUND_BLOCK);
      this.rows = new Blocks(this.roundBox, nRounds, (i) => this.block(i), 56 * ROUND_BLOCK);
      if (nRounds) this.rows.show(0);
      if (nText) this.text.show(0);
      if (this.side.prompt) this.textBox.prepend(el("span", { class: "prompt", title: "the prompt" }, this.side.prompt));
    }
    spans(block) {
      const first = block * TEXT_BLOCK;
      const box = el("span");
      this.side.tokens.slice(first, first + TEXT_BLOCK).forEach(([, text, origin, r], i) => {
        const span = el("span", { class: "tok " + originOf(origin) }, text);
        if (this.parted && this.parted.token === first + i) {
          span.classList.add("parts");
          span.title = "The runs part here";
        }
        span.addEventListener("click", () => { this.focus(r); this.describe(first + i); });
        span.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") this.describe(first + i); });
        box.append(span);
      });
      return [box];
    }
    describe(token) {
      const r = this.side.tokens[token][3], round = this.side.rounds[r];
      const i = token - this.starts[r];
      i < round.a && round.d[i] ? inspectDraft(round, i) : inspectTarget(round);
    }
    block(b) {
      const first = b * ROUND_BLOCK;
      return this.side.rounds.slice(first, first + ROUND_BLOCK).map((r, i) => this.row(r, first + i));
    }
    row(r, index) {
      const chips = el("div", { class: "chips" });
      if (r.o !== undefined) chips.append(el("span", { class: "chip soft" }, r.o));
      r.d.forEach((d, i) => {
        const style = d[2] === "accept" ? "draft" : d[2] === "reject" ? "reject" : "discard";
        const mark = el("span", { class: "mark", "aria-hidden": "true" }, MARKS[d[2]] || "?");
        const word = el("span", { class: "chip " + style, title: d[2] }, mark, d[1]);
        this.listen(word, () => inspectDraft(r, i));
        chips.append(word);
      });
      if (r.g) {
        const word = el("span", { class: "chip " + (r.c && !r.d.length ? "cooldown" : originOf(r.g[2])), title: r.g[2] },
          r.g[1]);
        this.listen(word, () => inspectTarget(r));
        chips.append(word);
        if (r.g[4]) chips.append(el("span", { class: "tie" }, "near tie"));
      }
      const state = r.c ? `cooldown, ${r.c} silent rounds left` : r.d.length ? `${r.a} of ${r.d.length} accepted`
        : "no draft";
      const head = (r.n === null ? "prompt" : "round " + r.n) + `, position ${r.p}: ${state}`;
      const row = el("div", { class: "round", role: "listitem", tabindex: index === this.current ? "0" : "-1",
        "data-round": index, "aria-label": this.spoken(r, head) }, el("div", { class: "head" }, head), chips);
      if (this.parted && this.parted.round === index) {
        row.classList.add("parted");
        row.querySelector(".head").append(el("strong", {}, " \u2190 the runs part here"));
      }
      if (r.b) row.append(el("div", { class: "back" }, "\u21b6 " + r.b));
      row.addEventListener("click", () => this.focus(index));
      row.addEventListener("focus", () => this.rove(row, index));
      return row;
    }
    spoken(r, head) {
      const drafts = r.d.map((d) => `${d[1]} ${d[2]}`).join(", ");
      const target = r.g ? `; ${r.g[2]} ${r.g[1]}${r.g[4] ? ", near tie" : ""}` : "";
      return `${head}. ${drafts}${target}${r.b ? "; rolled back: " + r.b : ""}`;
    }
    listen(node, show) {
      node.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") show(); });
      node.addEventListener("click", show);
    }
    rove(row, index) {
      const old = this.roundBox.querySelector('.round[tabindex="0"]');
      if (old) old.setAttribute("tabindex", "-1");
      row.setAttribute("tabindex", "0");
      this.current = index;
    }
    focus(index) {
      const at = Math.max(0, Math.min(this.side.rounds.length - 1, index));
      const block = this.rows.show(Math.floor(at / ROUND_BLOCK));
      const row = block.querySelector(`[data-round="${at}"]`);
      row.focus({ preventScroll: true });
      const box = this.roundBox.getBoundingClientRect(), place = row.getBoundingClientRect();
      if (place.top < box.top || place.bottom > box.bottom) {
        this.roundBox.scrollTop += place.top - box.top - box.height / 3;
      }
    }
    toggle(index) {
      const r = this.side.rounds[index];
      const row = this.roundBox.querySelector(`[data-round="${index}"]`);
      const open = row.querySelector(".all");
      if (open) { open.remove(); return; }
      const lists = r.d.map((d, i) => candidates(d[3], draftTitle(d, i)));
      for (const [why, list] of r.u) lists.push(candidates(list, why));
      if (!lists.length) lists.push(el("p", { class: "soft" }, "Nothing was drafted in this round."));
      row.append(el("div", { class: "all" }, ...lists));
    }
    key(event) {
      const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: PAGE, PageUp: -PAGE,
        Home: -Infinity, End: Infinity };
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key in steps) this.focus(this.current + steps[event.key]);
      else if (event.key === "Enter" || event.key === " ") this.toggle(this.current);
      else return;
      event.preventDefault();
    }
    ties() {
      const box = el("div", { class: "ties" });
      for (const [r, pos, margin] of this.side.near_ties.slice(0, 200)) {
        const button = el("button", { type: "button" }, `position ${pos}, margin ${margin}`);
        button.addEventListener("click", () => this.focus(r));
        box.append(button);
      }
      const n = this.side.near_ties.length;
      const more = n > 200 ? ` (the first 200 of ${n})` : n ? ` (${n})` : ": none";
      return el("section", {}, el("h3", {}, "Near ties" + more), box);
    }
  }

  // ----------------------------------------------------------------------------------------------- the page

  const sides = data.sides, parts = data.divergence;
  const place = (k) => (parts && parts.rounds ? { round: parts.rounds[k],
    token: parts.kind === "text" ? Math.min(parts.at, sides[k].tokens.length - 1) : -1 } : null);
  const views = sides.map((side, k) => new RunView(side, k, place(k)));
  const columns = (nodes) => el("div", { class: "sides" + (nodes.length > 1 ? " two" : "") }, ...nodes);
  const summary = document.getElementById("summary");

  if (!parts) summary.textContent = `${sides[0].tokens.length} tokens in ${sides[0].rounds.length} rounds`;
  else if (parts.kind === "none") summary.textContent = "The two runs are the same, round by round and number by number.";
  else if (parts.kind === "prompt") summary.textContent = `The prompts differ at token ${parts.at}.`;
  else {
    const where = parts.kind === "text" ? `The texts part at token ${parts.at}`
      : parts.kind === "rounds" ? `The texts are the same; the runs part in round ${parts.at}`
      : `Texts, drafts and verdicts are the same; probabilities or margins differ from round ${parts.at} on`;
    const jump = el("button", { type: "button", id: "jump" }, "Show where");
    jump.addEventListener("click", () => {
      for (const view of [...views].reverse()) {
        if (!view.side.rounds.length) continue;
        view.focus(view.parted.round);
        if (view.parted.token >= 0) {
          const block = view.text.show(Math.floor(view.parted.token / TEXT_BLOCK));
          const span = block.querySelector(".parts");
          if (span) view.textBox.scrollTop += span.getBoundingClientRect().top -
            view.textBox.getBoundingClientRect().top - 60;
        }
      }
    });
    summary.append(where + ". ", jump);
  }
  if (parts && parts.started.length) {
    summary.append(` They were started otherwise: ${parts.started.join(", ")}.`);
  }
  main.append(columns(sides.map(facts)), el("h2", {}, "Text by origin"), legend(), columns(views.map((v) => v.textBox)),
    el("h2", { id: "timelines", tabindex: "-1" }, "Rounds"),
    el("p", { class: "soft" }, "Arrow keys, Page and Home or End move; Enter shows all candidates of a round; point at " +
      "or tap a token for its own."),
    columns(views.map((v) => v.roundBox)), el("h2", {}, "Acceptance"),
    el("div", { class: "charts" }, timeChart(sides), positionTable(sides)), columns(views.map((v) => v.ties())));
  for (const view of views) view.build();
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") inspector.hidden = true; });
})();
