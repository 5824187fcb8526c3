// The stack as it will run: which layer (upwards) each visit (rightwards) runs.

const CELL = 14, LEFT = 26, BOTTOM = 18, NAMESPACE = "http://www.w3.org/2000/svg";
const RUNS = ["first run", "second run", "third run", "further runs"];

export function draw(svg, legend, plan) {
  const width = LEFT + plan.visits.length * CELL + 4, height = plan.layers * CELL + BOTTOM + 4;
  const x = visit => LEFT + visit * CELL, y = layer => height - BOTTOM - (layer + 1) * CELL;
  const parts = [], arcs = [], runs = new Map();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.maxWidth = `${Math.max(width * 1.4, 260)}px`;
  svg.setAttribute("aria-label", `${plan.visits.length} visits of ${plan.layers} layers: ${plan.plan}`);
  const visited = new Set(plan.visits.map(visit => visit.layer));
  for (let layer = 0; layer < plan.layers; layer++) {
    if (!visited.has(layer)) {
      const middle = y(layer) + CELL / 2;
      parts.push(made("line", {class: "skipped", x1: LEFT, x2: width - 4, y1: middle, y2: middle}));
    }
    if (layer % Math.ceil(plan.layers / 12) === 0) {
      parts.push(made("text", {x: LEFT - 6, y: y(layer) + CELL * 0.75, "text-anchor": "end"}, layer));
    }
  }
  plan.visits.forEach((visit, number) => {
    const run = Math.min((runs.get(visit.layer) ?? 0) + 1, RUNS.length);
    runs.set(visit.layer, (runs.get(visit.layer) ?? 0) + 1);
    const cell = made("rect", {
      class: `run${run}`, x: x(number) + 1, y: y(visit.layer) + 1, width: CELL - 2, height: CELL - 2, rx: 2,
      opacity: 0.25 + 0.75 * Math.min(1, Math.abs(visit.damp)),
    });
    cell.append(made("title", {}, told(visit, number)));
    parts.push(cell);
    if (visit.owner !== number) {
      const from = [x(visit.owner) + CELL / 2, y(plan.visits[visit.owner].layer) + CELL / 2];
      const to = [x(number) + CELL / 2, y(visit.layer) + CELL / 2];
      const bend = [(from[0] + to[0]) / 2, Math.min(from[1], to[1]) - CELL];
      arcs.push(made("path", {class: "kv", d: `M${from} Q${bend} ${to}`}));
    }
    if (number % Math.ceil(plan.visits.length / 20) === 0) {
      parts.push(made("text", {x: x(number) + CELL / 2, y: height - 6, "text-anchor": "middle"}, number));
    }
  });
  svg.replaceChildren(...parts, ...arcs);
  const most = Math.min(Math.max(...runs.values()), RUNS.length);
  legend.replaceChildren(...RUNS.slice(0, most).map((name, number) => {
    const entry = document.createElement("span"), colour = document.createElement("i");
    colour.className = `run${number + 1}`;
    entry.append(colour, name);
    return entry;
  }));
  const notes = [];
  if (visited.size < plan.layers) notes.push(`${plan.layers - visited.size} layers never run`);
  if (plan.visits.some((visit, number) => visit.owner !== number)) notes.push("dashed: reads the other's keys and values");
  if (plan.visits.some(visit => visit.damp !== 1)) notes.push("pale: damped");
  for (const note of notes) {
    const entry = document.createElement("span");
    entry.textContent = note;
    legend.append(entry);
  }
}

function told(visit, number) {
  const damped = visit.damp === 1 ? "" : `, damped to ${visit.damp}`;
  const shared = visit.owner === number ? "" : `, reads the keys and values of visit ${visit.owner}`;
  return `visit ${number}: layer ${visit.layer}${damped}${shared}`;
}

export function made(name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
