// Type a spec or pick a block of a scan, see it drawn, talk to the base and to the view side by side.

import {show as showHeat} from "/playground/heat.js";
import {baseOf, chosen, dropped, read} from "/playground/scan.js";
import {draw} from "/playground/stack.js";

const at = id => document.getElementById(id);
const base = at("base"), spec = at("spec"), error = at("error"), question = at("question");
const panes = {left: [], right: []};  // what was said: messages as the API has them
let plan = null, wanted = 0, stopping = null;

async function call(path, body, signal) {
  const headers = {"content-type": "application/json"};
  if (at("key").value) headers.authorization = `Bearer ${at("key").value}`;
  const answer = await fetch(path, {method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body)});
  if (answer.ok) return answer;
  at("key-field").hidden = at("key-field").hidden && answer.status !== 401;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error?.message ?? `the server says ${answer.status}`);
}

const viewed = () => spec.value.trim() ? `${base.value}@${spec.value.trim()}` : base.value;

async function show() {
  const mine = ++wanted;
  let found = null, wrong = "";
  try {
    found = await (await call(`/v1/playground/plan?model=${encodeURIComponent(viewed())}`)).json();
  } catch (problem) {
    wrong = problem.message;
  }
  if (mine !== wanted) return;  // another spec was typed meanwhile
  plan = found ?? plan;
  spec.setAttribute("aria-invalid", wrong !== "");
  error.hidden = wrong === "";
  error.textContent = pointed(wrong);
  for (const button of document.querySelectorAll("#copies button, #send")) button.disabled = wrong !== "";
  if (found === null) return;
  draw(at("stack"), at("legend"), plan);
  at("right").querySelector("h2").textContent = viewed();
  at("left").querySelector("h2").textContent = base.value;
  document.querySelector('[data-copy="mergekit"]').disabled = plan.mergekit === null;
  const costs = plan.costs;
  fill(at("costs"), [
    ["visits", `${plan.visits.length}, over ${plan.layers} layers`],
    ["runs", `${count(costs.effective_parameters)} parameters a token, of ${count(costs.unique_parameters)} in memory`],
    ["weights", `${size(costs.base_bytes)}, shared; as a model of its own ${size(costs.materialised_bytes)}`],
    ["KV cache", `${size(costs.kv_bytes_per_token)} a token`],
  ]);
}

// The message of the server points at the spec from below: its first line is the spec, which is above already.
function pointed(message) {
  const lines = message.split("\n");
  return lines.length > 1 && lines[0] === spec.value.trim() ? lines.slice(1).join("\n") : message;
}

function fill(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    return [term, told];
  }));
}

const scaled = (number, units) => {
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) { number /= 1000; unit++; }
  return `${number.toLocaleString("en", {maximumSignificantDigits: 3})}${units[unit]}`;
};
const count = number => scaled(number, ["", " K", " M", " B"]);
const size = number => scaled(number, [" B", " kB", " MB", " GB"]);

function written(side, kind, text) {
  const line = document.createElement("p"), place = at(side).querySelector(".said");
  line.className = kind;
  line.textContent = text;
  place.append(line);
  place.scrollTop = place.scrollHeight;
  return line;
}

async function answer(side, model, signal) {
  const line = written(side, "assistant", "");
  const place = line.parentElement, began = performance.now();
  let tokens = 0, text = "";
  try {
    const body = {
      model, messages: panes[side], stream: true, stream_options: {include_usage: true},
      temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
    };
    const reader = (await call("/v1/chat/completions", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        text += chunk.choices[0]?.delta?.content ?? "";
        tokens = chunk.usage?.completion_tokens ?? tokens;
        line.textContent = text;
        place.scrollTop = place.scrollHeight;
      }
    }
  } catch (problem) {
    if (problem.name !== "AbortError") written(side, "wrong", problem.message);
  }
  panes[side].push({role: "assistant", content: text});
  const seconds = (performance.now() - began) / 1000, note = document.createElement("small");
  note.textContent = signal.aborted ? "stopped" : tokens ? `${tokens} tokens in ${seconds.toFixed(1)} s` : "";
  line.append(note);
}

async function ask() {
  const text = question.value.trim();
  if (!text || stopping || at("send").disabled) return;
  question.value = "";
  stopping = new AbortController();
  at("stop").disabled = false;
  at("send").disabled = true;
  for (const side of ["left", "right"]) {
    panes[side].push({role: "user", content: text});
    written(side, "user", text);
  }
  await Promise.all([answer("left", base.value, stopping.signal), answer("right", viewed(), stopping.signal)]);
  stopping = null;
  at("stop").disabled = true;
  at("send").disabled = error.hidden === false;
  question.focus();
}

function startAgain() {
  stopping?.abort();
  for (const side of ["left", "right"]) {
    panes[side] = [];
    at(side).querySelector(".said").replaceChildren();
  }
}

function copied(kind) {
  const body = {model: viewed(), messages: [{role: "user", content: question.value || "What is 3 + 4?"}]};
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  return {
    spec: plan.plan,
    mergekit: plan.mergekit,
    recipe: `restack save '${base.value}@${plan.plan}' FOLDER`,
    curl: `curl ${location.origin}/v1/chat/completions -H 'content-type: application/json' -d '${quoted}'`,
  }[kind];
}

// A scan is shown, and what is picked there is the plan; `find` gives it, checked, or says why there is none.
async function openScan(find) {
  let wrong = "";
  try {
    const scan = await find();
    if (scan === null) return;
    const bases = await (await call("/v1/playground/bases")).json();
    const scanned = baseOf(scan, bases, base.value);
    at("scan").hidden = false;
    showHeat(scan, entry => { base.value = scanned; spec.value = entry.plan; show(); });
    if (base.value !== scanned) { base.value = scanned; await show(); }
  } catch (problem) {
    wrong = problem.message;
  }
  at("scan-error").hidden = wrong === "";
  at("scan-error").textContent = wrong;
}

let pause;
spec.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(show, 150); });
base.addEventListener("change", show);
at("key-field").addEventListener("submit", event => { event.preventDefault(); start(); });
at("ask").addEventListener("submit", event => { event.preventDefault(); ask(); });
at("stop").addEventListener("click", () => stopping?.abort());
at("clear").addEventListener("click", startAgain);
question.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
document.addEventListener("keydown", event => { if (event.key === "Escape") stopping?.abort(); });
at("folder").addEventListener("change", async () => {
  await openScan(() => chosen([...at("folder").files]));
  at("folder").value = "";  // so that the same folder can be opened again
});
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, event => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if (kind === "drop") openScan(() => dropped(event.dataTransfer));
  });
}
for (const button of document.querySelectorAll("#examples button")) {
  button.addEventListener("click", () => { spec.value = button.textContent; show(); spec.focus(); });
}
for (const button of document.querySelectorAll("#copies button")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(copied(button.dataset.copy));
    at("copied").textContent = `${button.dataset.copy} copied`;
    setTimeout(() => { at("copied").textContent = ""; }, 2000);
  });
}

async function start() {
  try {
    const models = (await (await call("/v1/models")).json()).data;
    error.hidden = true;
    base.replaceChildren(...models.map(model => new Option(model.id)));
  } catch (problem) {
    error.hidden = false;
    error.textContent = problem.message;
    return;
  }
  await show();
  await openScan(async () => {
    const text = await (await call("/v1/playground/scan")).text();
    return text === "null" ? null : read(text);  // the server was started without one
  });
}

start();
