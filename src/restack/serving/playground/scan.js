// What a scan found: its summary.json out of a folder, checked, and the model that it is of.

const FILE = "summary.json";
const ANEW = "open a folder that restack scan wrote";

export async function chosen(files) {
  const depth = file => file.webkitRelativePath.split("/").length;
  const [first] = files.filter(file => file.name === FILE).sort((one, other) => depth(one) - depth(other));
  if (first === undefined) throw new Error(`this folder has no ${FILE}; ${ANEW}, and came to the end of`);
  return read(await first.text());
}

export async function dropped(data) {
  const folder = [...data.items].map(item => item.webkitGetAsEntry()).find(entry => entry?.isDirectory);
  if (folder === undefined) return data.files.length ? read(await data.files[0].text()) : null;
  const file = await new Promise((found, failed) => folder.getFile(FILE, {}, found, failed)).catch(() => undefined);
  return chosen(file === undefined ? [] : [await new Promise((found, failed) => file.file(found, failed))]);
}

// The summary that a text is, with nothing in it that a drawing could stumble over.
export function read(text) {
  let scan;
  try {
    scan = JSON.parse(text);
  } catch {
    throw new Error(`this is no ${FILE} of a scan; ${ANEW}`);
  }
  const wrong = Array.isArray(scan?.entries) ? faults(scan).next().value : "entries";
  if (wrong !== undefined) throw new Error(`this is no ${FILE} of a scan (see its ${wrong}); ${ANEW}`);
  return scan;
}

// Which of the served bases a scan is of: the preferred one, if it can be.
export function baseOf(scan, bases, preferred) {
  const ordered = bases.toSorted((one, other) => (other.name === preferred) - (one.name === preferred));
  const found = ordered.find(base => difference(scan, base) === "");
  if (found !== undefined) return found.name;
  throw new Error(`this is a scan of ${scan.model}, ${difference(scan, ordered[0])}; serve the model that was scanned`);
}

function difference(scan, {name, depth, identity}) {
  const there = scan.identity;
  if (scan.depth !== depth) return `with ${scan.depth} layers, and ${name} has ${depth}`;
  for (const part of ["kind", "plan"]) {
    if (there[part] !== undefined && there[part] !== identity[part]) {
      return `${part} ${there[part]}, and ${name} is ${part} ${identity[part]}`;
    }
  }
  // Sampled bytes of the weights, so of another dtype they say nothing.
  const comparable = there.weights !== undefined && identity.weights !== undefined && there.dtype === identity.dtype;
  return comparable && there.weights !== identity.weights ? `and ${name} has other weights` : "";
}

const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = value => typeof value === "string";
const isCount = value => Number.isInteger(value) && value >= 0;
const isNumber = value => typeof value === "number" || value === null;  // null: it was not finite
const isInterval = value => isObject(value) && [value.mean, value.low, value.high].every(isNumber) && isCount(value.n);
const isCompared = value =>
  isInterval(value) && isInterval(value.difference) && isNumber(value.gain) && isNumber(value.p);
const isEach = (value, kind) => isObject(value) && Object.values(value).every(kind);

function* faults(scan) {
  if (!isText(scan.model)) yield "model";
  if (!isText(scan.headline)) yield "headline";
  if (!isCount(scan.depth)) yield "depth";
  if (!isEach(scan.identity, isText)) yield "identity";
  if (!isEach(scan.base, isInterval)) yield "base";
  if (!isText(scan.verdict?.objective?.[0])) yield "verdict";
  if (!Array.isArray(scan.probes) || scan.probes.length === 0) yield "probes";
  for (const [number, probe] of scan.probes.entries()) if (!isProbe(probe)) yield `probe ${number}`;
  for (const [number, entry] of scan.entries.entries()) if (!isEntry(entry, scan.depth)) yield `entry ${number}`;
}

const isProbe = value =>
  isObject(value) && [value.name, value.measure].every(isText) && isCount(value.questions) && isCount(value.decimals)
  && value.decimals <= 20 && Number.isFinite(value.limit) && value.limit > 0
  && (isText(value.largest_gain) || value.largest_gain === null);

const isEntry = (value, depth) =>
  isObject(value) && [value.plan, value.label, value.what].every(isText) && [value.times, value.cost].every(isNumber)
  && (isText(value.error) || value.error === null) && isEach(value.scores, isCompared)
  && (value.block === null || isBlock(value.block, depth));

const isBlock = (value, depth) =>
  Array.isArray(value) && value.length === 2 && value.every(isCount) && value[0] < value[1] && value[1] <= depth;
