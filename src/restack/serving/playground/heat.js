// The heat map of a scan: a cell for each block, its start downwards and its end rightwards; a click opens its plan.
// Colours, words and numbers are those of the scan's own report (restack.scanning.reporting).

import {made} from "/playground/stack.js";

const SIDE = 400;  // of the map
const LEVELS = 6;  // shades of each colour
const MOST_TOLD = 13;  // layers of a model whose map has room for numbers
const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
const HINT = "Point at a block, or walk with the arrow keys. A click or Enter opens it.";

const at = id => document.getElementById(id);
const svg = at("heat");
let scan, open, probe;
let cells = new Map();  // the entry and the mark of each place on the map, by "i,j"
let current = null;  // the place where the keyboard is, or the last click was

export function show(found, opened) {
  [scan, open] = [found, opened];
  const stacks = scan.entries.length === 1 ? "1 stack" : `${scan.entries.length} stacks`;
  at("scan-title").textContent = `Scan of ${scan.model}: ${stacks} of ${scan.depth} layers`;
  at("headline").textContent = scan.headline;
  at("probe").replaceChildren(...scan.probes.map(({name}) => new Option(name)));
  at("probe").value = scan.verdict.objective[0];
  at("probe").onchange = () => ask(at("probe").value);
  at("variant").onchange = () => { current = null; draw(); };
  svg.onpointerover = svg.onpointerleave = event => {
    frame("over", entryOf(event.target));
    tell(entryOf(event.target) ?? entryAt(current));
  };
  svg.onclick = event => entryOf(event.target) && pick(event.target.dataset.place);
  svg.onfocus = () => { if (current === null) go(start()); };
  svg.onkeydown = walk;
  ask(at("probe").value);
}

// Another probe: what it says of each kind of block, and the kind that has its best.
function ask(name) {
  probe = scan.probes.find(each => each.name === name) ?? scan.probes[0];
  const blocks = scan.entries.filter(entry => entry.block !== null);
  const ordered = blocks.toSorted((one, other) => (one.times < 1) - (other.times < 1));  // what leaves out comes last
  const kinds = Object.groupBy(ordered, entry => entry.what);
  const options = Object.entries(kinds).map(([what, entries]) => new Option(counted(what, entries), what));
  const best = blocks.find(isBest);
  at("variant").replaceChildren(...options);
  if (best) at("variant").value = best.what;
  at("map").hidden = at("variant").hidden = blocks.length === 0;
  at("no-map").hidden = blocks.length > 0;
  current = null;
  draw();
  list(scan.entries.filter(entry => entry.block === null));
}

function counted(what, entries) {
  const count = word => entries.filter(entry => beyond(score(entry)) === word).length;
  return `${what}: ${count("better")} better, ${count("worse")} worse`;
}

function draw() {
  const {depth} = scan, cell = SIDE / (depth + 1), rows = [], what = at("variant").value;
  const base = {plan: "", label: "base", block: [0, 0]};
  cells = new Map();
  for (const entry of [base, ...scan.entries.filter(entry => entry.block !== null && entry.what === what)]) {
    const [i, j] = entry.block;
    rows[i] ??= made("g", {role: "row"});
    const mark = square(entry, i, j, cell);
    cells.set(`${i},${j}`, {entry, mark});
    rows[i].append(mark);
    if (score(entry)?.gain != null && depth <= MOST_TOLD) rows[i].append(inside(score(entry).gain, i, j, cell));
  }
  const [first, last] = [cell / 2, cell * (depth - 0.5)];
  const diagonal = made("path", {class: "diagonal", d: `M${first} ${first}L${last} ${last}`});
  const frames = ["best", "over", "at"].map(name => made("rect", {class: name}));
  svg.setAttribute("viewBox", `-34 -6 442 ${cell * depth + 46}`);
  svg.setAttribute("aria-label", `${probe.name}, ${what}: the gain of each block over the base`);
  svg.replaceChildren(diagonal, ...rows.filter(Boolean), ...axes(depth, cell), ...frames);
  frame("best", [...cells.values()].map(({entry}) => entry).find(isBest));
  legend();
  go(current);
}

function square(entry, i, j, cell) {
  const compared = score(entry), gap = cell > 10 ? 0.6 : 0, place = `${i},${j}`, side = cell - gap;
  const common = {id: `cell-${i}-${j}`, "data-place": place, role: "gridcell", "aria-label": told(entry)};
  if (entry.plan === "") {
    const dot = Math.max(5, Math.min(12, cell / 2)), from = (cell - dot) / 2;
    return made("rect", {...common, class: "base", x: from, y: from, width: dot, height: dot});
  }
  const shade = compared?.gain == null ? "failed" : shaded(compared);
  return made("rect", {...common, class: shade, x: j * cell, y: i * cell, width: side, height: side});
}

// b1 to b6 are better, w1 to w6 worse, g1 to g6 not beyond chance.
function shaded(compared) {
  const level = 1 + Math.min(LEVELS - 1, Math.floor(Math.abs(compared.gain) / probe.limit * LEVELS));
  return `${{better: "b", worse: "w"}[beyond(compared)] ?? "g"}${level}`;
}

function inside(gain, i, j, cell) {
  const size = Math.abs(gain), digits = size >= 9.95 ? 0 : size >= 0.995 ? 1 : size >= 0.0095 ? 2 : 3;
  const text = size < 0.0005 ? "0" : signed(gain, digits).replace(digits > 1 ? "0." : "", digits > 1 ? "." : "");
  const place = {x: (j + 0.5) * cell, y: (i + 0.5) * cell}, room = cell * 1.35 / Math.max(4, text.length);
  return made("text", {...place, class: "inside", "font-size": Math.min(12, room), "aria-hidden": true}, text);
}

// Put the frame of this name around a cell, or around none.
function frame(name, entry) {
  const mark = svg.querySelector(`.${name}`), [i, j] = entry?.block ?? [0, 0], cell = SIDE / (scan.depth + 1);
  const grown = (scan.depth <= MOST_TOLD ? 0 : cell / 2) + (name === "at" ? 2 : 0);  // a small cell must be found
  const shape = {x: j * cell - grown, y: i * cell - grown, width: cell + 2 * grown, height: cell + 2 * grown};
  for (const [key, value] of Object.entries(shape)) mark.setAttribute(key, value);
  mark.classList.toggle("nowhere", entry === undefined);
}

function axes(depth, cell) {
  const step = [1, 2, 4, 5, 10, 20].find(each => depth / each <= 14) ?? Math.floor(depth / 12), bottom = cell * depth;
  const parts = [made("path", {class: "axis", d: `M-1 0V${bottom}H${cell * (depth + 1)}`})];
  for (let tick = 0; tick <= depth; tick += step) {
    const place = (tick + 0.5) * cell;
    parts.push(made("text", {x: place, y: bottom + 14, "text-anchor": "middle"}, tick));
    if (tick < depth) parts.push(made("text", {x: -6, y: place + 4, "text-anchor": "end"}, tick));
  }
  const upright = `translate(-25 ${bottom / 2}) rotate(-90)`;
  parts.push(made("text", {x: SIDE / 2, y: bottom + 33, "text-anchor": "middle"}, "end of the block, j (not in it)"));
  parts.push(made("text", {transform: upright, "text-anchor": "middle"}, "start, i"));
  for (const part of parts) part.setAttribute("aria-hidden", true);
  return parts;
}

function legend() {
  const base = has(scan.base, probe.name), best = scan.entries.find(isBest);
  const ramp = letter => [1, 2, 3, 4, 5, 6].map(level => letter + level), end = Number(probe.limit.toPrecision(2));
  const scale = probe.lower_is_better ? "how far below the base" : "gain over the base";
  const middle = base ? `; base ${number(base.mean)} in the middle` : "";
  at("heat-key").replaceChildren(
    entry("worse ", [...ramp("w").reverse(), ...ramp("b")],
      ` better (${scale}, -${end} to +${end} and beyond${middle})`),
    entry("", ramp("g"), " not beyond chance"),
    entry("", ["base"], " base"),
    ...(best ? [entry("", ["best"], ` largest gain: ${best.label}, ${signed(score(best).gain)}`)] : []),
    entry("brackets: 95% intervals", [], ""),
  );
  function entry(before, colours, after) {
    const span = document.createElement("span"), ramp = document.createElement("span");
    ramp.className = "ramp";
    ramp.append(...colours.map(colour => Object.assign(document.createElement("i"), {className: colour})));
    span.append(before, ramp, after);
    return span;
  }
}

// Stacks that are no single block have no place on the map: they are rows, the best first.
function list(entries) {
  const gain = entry => score(entry)?.gain ?? -Infinity;
  at("others").replaceChildren(...entries.toSorted((one, other) => gain(other) - gain(one)).map(entry => {
    const [row, button, text] = ["li", "button", "span"].map(name => document.createElement(name));
    button.textContent = entry.label;
    button.addEventListener("click", () => open(entry));
    text.textContent = told(entry).slice(entry.label.length + 2);
    row.append(button, text);
    return row;
  }));
}

function walk(event) {
  if (event.key === "Enter" && current !== null) return pick(current);
  const step = STEPS[event.key];
  if (step === undefined) return;
  event.preventDefault();
  let [i, j] = (current ?? start()).split(",").map(Number);
  do {
    i += step[0];
    j += step[1];
  } while (!cells.has(`${i},${j}`) && i >= 0 && j >= 0 && i < scan.depth && j <= scan.depth);
  if (cells.has(`${i},${j}`)) go(`${i},${j}`);
}

function start() {
  const best = [...cells].find(([, {entry}]) => isBest(entry));
  return best ? best[0] : cells.keys().next().value;
}

function pick(place) {
  go(place);
  open(entryAt(place));
}

function go(place) {
  current = place;
  const here = cells.get(place);
  svg.setAttribute("aria-activedescendant", here?.mark.id ?? "");
  frame("at", here?.entry);
  tell(here?.entry);
}

function tell(entry) {
  const plan = document.createElement("code");
  plan.textContent = entry?.plan ?? "";
  at("told").replaceChildren(entry ? told(entry) : HINT, plan);
}

const entryAt = place => cells.get(place)?.entry;
const entryOf = mark => entryAt(mark.dataset.place);
const has = (object, name) => Object.hasOwn(object, name) ? object[name] : undefined;
const isBest = entry => entry.block !== null && entry.plan !== "" && entry.plan === probe.largest_gain;
const score = entry => has(entry.scores ?? {}, probe.name);

// All that is known of a stack on the probe, on a line.
function told(entry) {
  if (entry.plan === "") {
    const base = has(scan.base, probe.name);
    return base ? `base: ${number(base.mean)}${perplexity(base.mean, " (", ")")} (${reach(base, number)})` : "base";
  }
  const compared = score(entry);
  if (compared === undefined) return `${entry.label}: ${entry.error ?? "no score"}`;
  return [
    `${entry.label}${entry.block ? ` ${entry.what}` : ""}: ${number(compared.mean)} (${reach(compared, number)})`
      + perplexity(compared.mean, ", "),
    `minus the base ${signed(compared.difference.mean)} (${reach(compared.difference, signed)})`,
    `n = ${compared.n}`,
    `corrected ${chance(compared.p)}, ${beyond(compared) || "not beyond chance"}`,
    `cost ${number(entry.cost, 2)}`,
  ].join("; ");
}

function beyond(compared) {
  if (compared === undefined || compared.p === null || compared.p > 0.05) return "";
  return compared.gain > 0 ? "better" : "worse";
}

function number(value, digits = probe.decimals) {
  return value === null ? "unknown" : (Number(value.toFixed(digits)) + 0).toFixed(digits);  // no -0.000
}

function signed(value, digits = probe.decimals) {
  const text = number(value, digits);
  return value === null || text.startsWith("-") ? text : `+${text}`;
}

const reach = ({low, high}, written) => `${written(low)} to ${written(high)}`;

function perplexity(loss, before, after = "") {
  if (!probe.measure.startsWith("loss") || loss === null) return "";
  const value = Math.exp(Math.min(loss, 700));
  const whole = value < 1e9 ? Math.round(value).toLocaleString("en") : value.toExponential(2);
  return `${before}perplexity ${value < 1000 ? value.toPrecision(4) : whole}${after}`;
}

function chance(p) {
  return p === null ? "p unknown" : p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p >= 0.0995 ? 2 : 3)}`;
}
