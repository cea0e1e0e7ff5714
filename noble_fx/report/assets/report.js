"use strict";
(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const one = (query, within = document) => within.querySelector(query);
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };

  // --- the table of layers: sorted, filtered, unfolded --------------------------------------------------------------

  const table = one("#sites");
  const bodies = all("tbody", table);
  const titles = all("thead th", table);
  const texts = new Map(bodies.map((body) => [body, body.textContent.toLowerCase()]));

  for (const body of bodies) {
    [...body.rows[0].cells].forEach((cell, at) => {
      cell.dataset.label = ["", "×", "", "", "rank", "σ", "parameters", "FLOPs", "", ""][at];
      if (["–", ""].includes(cell.textContent.trim())) cell.classList.add("empty");
    });
  }

  const key = (body, at) => {
    const cell = body.rows[0].cells[at];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  const sortBy = (at) => {
    const title = titles[at];
    const numbers = title.classList.contains("number");
    const first = numbers ? "descending" : "ascending";
    const second = numbers ? "ascending" : "descending";
    const order = title.getAttribute("aria-sort") === first ? second : first;
    titles.forEach((other) => other.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = numbers
      ? (a, b) => Number(key(a, at)) - Number(key(b, at))
      : (a, b) => key(a, at).localeCompare(key(b, at), "en", { numeric: true });
    table.append(...[...bodies].sort((a, b) => sign * compare(a, b)));
  };
  titles.forEach((title, at) => one("button", title).addEventListener("click", () => sortBy(at)));

  const filter = () => {
    const words = one("#find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = one("#state").value;
    let shown = 0;
    for (const body of bodies) {
      const fits = words.every((word) => texts.get(body).includes(word));
      body.hidden = !(fits && (!state || body.dataset.state.split(" ").includes(state)));
      shown += body.hidden ? 0 : 1;
    }
    one("#shown").textContent = `${shown} of ${bodies.length} rows`;
  };
  one("#find").addEventListener("input", filter);
  one("#state").addEventListener("change", filter);
  one(".tools").addEventListener("submit", (event) => event.preventDefault());
  filter();

  const toggle = (button, hidden) => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    hidden.hidden = !open;
  };
  for (const button of all(".fold", table)) {
    button.addEventListener("click", () => toggle(button, one(".names", button.closest("tbody"))));
  }

  // --- the graphs: one pass at a time, and where a step was ---------------------------------------------------------

  for (const button of all(".gap button")) {
    button.addEventListener("click", () => toggle(button, button.closest("tbody").nextElementSibling));
  }

  for (const program of all(".program")) {
    const views = all(".view", program);
    const choices = all(".passes input", program);
    const steps = all(".steps tbody tr", program);

    const show = (choice) => {
      choice.checked = true;
      views.forEach((view, at) => { view.hidden = at !== Number(choice.value); });
      const pass = choice.dataset.pass;
      for (const step of steps) step.hidden = Boolean(pass) && step.dataset.pass !== pass;
    };
    choices.forEach((choice) => choice.addEventListener("change", () => show(choice)));

    const find = (step) => {
      for (const marked of all(".on, .found", program)) marked.classList.remove("on", "found");
      step.classList.add("on");
      const pass = choices.find((choice) => choice.dataset.pass === step.dataset.pass);
      if (pass && !choices.find((choice) => choice.checked && choice.dataset.pass === step.dataset.pass)) {
        views.forEach((view, at) => { view.hidden = at !== Number(pass.value); });
        pass.checked = true;
      }
      const nodes = new Set(one("button", step).dataset.nodes.split(" "));
      const within = views.length ? views.filter((view) => !view.hidden) : [program];
      const cells = within.flatMap((view) => all("td[data-node]", view)).filter((cell) => nodes.has(cell.dataset.node));
      cells.forEach((cell) => {
        cell.classList.add("found");
        const body = cell.closest("tbody");
        if (body.hidden) one("button", body.previousElementSibling).click();
      });
      if (cells.length) cells[0].scrollIntoView({ block: "center" });
    };
    steps.forEach((step) => one("button", step).addEventListener("click", () => find(step)));
  }

  // --- the picture of a block ---------------------------------------------------------------------------------------

  const data = one("#drawing-data");
  if (!data) return;
  const { direction, nodes, edges } = JSON.parse(data.textContent);
  const place = one("#drawing");
  const details = one("#details");
  const LETTER = 7.25, SMALL = 6.4, LONGEST = 34;
  const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
  const svg = (tag, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };

  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: direction, nodesep: 22, ranksep: direction === "TB" ? 26 : 46, marginx: 4, marginy: 4 });
  graph.setDefaultEdgeLabel(() => ({}));
  nodes.forEach((node, at) => {
    const width = Math.max(short(node.label).length * LETTER, short(node.about).length * SMALL) + 24;
    graph.setNode(String(at), { width, height: node.about ? 40 : 26 });
  });
  const numbers = new Map(nodes.map((node, at) => [node.name, String(at)]));
  const ordered = direction === "TB" ? edges : [...edges].reverse(); // dagre fills a column from below
  ordered.forEach(([from, to]) => graph.setEdge(numbers.get(from), numbers.get(to)));
  dagre.layout(graph);

  // dagre's own measure leaves out lines that run outside of all boxes.
  const bends = graph.edges().flatMap((edge) => graph.edge(edge).points.map((point) => point.x));
  const left = Math.min(0, ...bends.map((x) => x - 4));
  const width = Math.ceil(Math.max(graph.graph().width, ...bends.map((x) => x + 4)) - left);
  const height = Math.ceil(graph.graph().height);
  const drawing = svg("svg", { width, height, viewBox: `${left} 0 ${width} ${height}` });
  drawing.append(svg("defs"));
  const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" });
  arrow.append(svg("path", { d: "M0 0L8 4L0 8z" }));
  drawing.firstChild.append(arrow);

  // Through the middles of the lines between dagre's points, which are the corners of a smooth curve.
  const curve = (points) => {
    const middle = (a, b) => `${(a.x + b.x) / 2} ${(a.y + b.y) / 2}`;
    let path = `M${points[0].x} ${points[0].y}L${middle(points[0], points[1])}`;
    for (let at = 1; at < points.length - 1; at += 1) {
      path += `Q${points[at].x} ${points[at].y} ${middle(points[at], points[at + 1])}`;
    }
    const last = points[points.length - 1];
    return `${path}L${last.x} ${last.y}`;
  };
  const lines = graph.edges().map((edge) => {
    const line = svg("path", { d: curve(graph.edge(edge).points), "marker-end": "url(#arrow)" });
    drawing.append(line);
    return { edge, line };
  });

  const tell = (node) => {
    details.replaceChildren(make("dt", { class: "title" }, node.label));
    if (node.about) details.append(make("dd", {}, node.about));
    for (const [name, value] of Object.entries(node.facts)) {
      const told = make("dd");
      told.append(["code", "site", "module", "shape"].includes(name) ? make("code", {}, value) : value);
      details.append(make("dt", {}, name), told);
    }
  };
  const boxes = nodes.map((node, at) => {
    const { x, y, width: w, height: h } = graph.node(String(at));
    const said = [node.label, node.about, ...Object.entries(node.facts).filter(([name]) => name !== "code").flat()];
    const box = svg("g", { class: node.kind, tabindex: 0, role: "img", "aria-label": said.filter(Boolean).join(", ") });
    box.append(svg("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 4 }));
    box.append(svg("text", { x, y: node.about ? y - 3 : y + 4 }, short(node.label)));
    if (node.about) box.append(svg("text", { class: "about", x, y: y + 12 }, short(node.about)));
    drawing.append(box);
    return box;
  });
  const look = (at) => {
    boxes.forEach((box, other) => box.classList.toggle("near", other === at));
    lines.forEach(({ edge, line }) => line.classList.toggle("near", [edge.v, edge.w].includes(String(at))));
    tell(nodes[at]);
  };
  boxes.forEach((box, at) => {
    box.addEventListener("mouseenter", () => look(at));
    box.addEventListener("focus", () => look(at));
  });
  place.append(drawing);
  look(Math.max(nodes.findIndex((node) => node.kind === "fused"), 0));
})();
