// What is shown and how: the study's data, the reader's choices, and who is told when they change.
const content = JSON.parse(document.getElementById("content").textContent);
const { runs } = content;
const MOST = 8; // runs that are compared: as many as there are colours to tell apart
const slide = new URLSearchParams(location.hash.slice(1)).get("slide");
const at = (id) => document.getElementById(id);

function make(tag, { text, kind, ...rest } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text; // text only: names and overrides are anyone's
  if (kind) node.className = kind;
  for (const [name, value] of Object.entries(rest)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function format(value, digits = 4) {
  if (!known(value)) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size < 0.0005 ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

const thousands = Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const compact = (value) => (value >= 10_000 ? thousands.format(value) : format(value));
const NUMBER = /^[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?$/i; // 2_000_000 too, as overrides have it
const numeric = (text) => (NUMBER.test(text) ? Number(text.replaceAll("_", "")) : NaN);
function inOrder(a, b) {
  const way = numeric(a) - numeric(b);
  return Number.isNaN(way) ? a.localeCompare(b, "en", { numeric: true }) : way;
}
const known = (value) => value !== null && value !== undefined;

const grouped = (list, of) => list.reduce((map, one) => map.set(of(one), [...(map.get(of(one)) ?? []), one]), new Map());

// ---- columns: one description each, for the table, the filter, the heatmap and the choice of the best

const diagnosesOf = (run) => [...run.diagnoses, ...run.samplers.flatMap((one) => one.diagnoses)];
const verdicts = (run) => diagnosesOf(run).flatMap((one) => one.verdicts);
const isNumber = (key) => runs.every((run) => run.parameters[key] === "" || !Number.isNaN(numeric(run.parameters[key])))
  && runs.some((run) => run.parameters[key] !== "");
const columns = [
  { key: "run", title: "run", get: (run) => run.label },
  ...content.parameters.map((key) => ({
    key, title: key, parameter: true, number: isNumber(key),
    get: (run) => (run.parameters[key] === "" ? null : isNumber(key) ? numeric(run.parameters[key]) : run.parameters[key]),
    show: (run) => run.parameters[key] || "–",
  })),
  { key: "state", title: "state", get: (run) => run.state },
  ...content.numbers.map((column) => ({ ...column, number: true, get: (run) => run.values[column.key] })),
  { key: "verdict", title: "doctor", get: (run) => [...new Set(verdicts(run))].join(", ") || null },
  { key: "warnings", title: "warnings", number: true, get: (run) => run.warnings.length },
].filter(({ key, get }) => !["verdict", "warnings"].includes(key) || runs.some((run) => get(run)));
const columnOf = (key) => columns.find((column) => column.key === key);

// ---- the reader's choices, kept over a reload

const memory = `ebm report ${content.folder}`;
const view = {
  filter: "", narrow: {}, sort: "best_held_out", down: false, chosen: [], theme: "auto", samplers: null, narrowing: false,
  train: true, heldOut: true, logX: false, logY: true, colourBy: "", reload: true, place: null,
};
if (!runs.some((run) => run.values.best_held_out !== null)) view.sort = "run";
try {
  if (!slide) Object.assign(view, JSON.parse(sessionStorage.getItem(memory) ?? "{}"));
} catch { /* a browser that keeps nothing for files */ }
// A page that is written again may have other runs: they are remembered by their folders.
view.chosen = view.chosen.map((folder) => (folder === null ? null : runs.find((run) => run.folder === folder) ?? null));
addEventListener("pagehide", () => {
  try {
    const chosen = view.chosen.map((run) => run?.folder ?? null);
    sessionStorage.setItem(memory, JSON.stringify({ ...view, chosen, place: place() }));
  } catch { /* as above */ }
});

/** Where the reader is: a section and how far it has scrolled by; parts that aren't drawn yet have other heights. */
function place() {
  const tops = [...document.querySelectorAll("main > section")].map((node) => [node.id, node.getBoundingClientRect().top]);
  return tops.map(([id, top]) => ({ id, top })).findLast(({ top }) => top <= 80) ?? null;
}

let visible = runs; // what passes the filter, in the table's order
let compared = []; // {run, colour}: what charts and pictures show in colour

function compare() {
  const ticked = view.chosen.map((run, colour) => ({ run, colour })).filter(({ run }) => run && visible.includes(run));
  if (ticked.length) compared = ticked;
  else {
    const shows = (run) => run.train.x.length || run.previews.length || run.samplers.some((one) => one.picture);
    const measured = visible.filter(shows);
    const best = [...measured].sort((a, b) => (a.values.best_held_out ?? Infinity) - (b.values.best_held_out ?? Infinity));
    // Losses of different schedules don't compare: the best of each comes before the second of any.
    const place = new Map([...grouped(best, (run) => run.group).values()].flatMap((list) => [...list.entries()])
      .map(([index, run]) => [run, index]));
    best.sort((a, b) => place.get(a) - place.get(b));
    compared = best.slice(0, best.length <= 6 ? 6 : 4).map((run, colour) => ({ run, colour }));
  }
}

function tick(run, on) {
  if (!view.chosen.some(Boolean)) view.chosen = [];
  const free = view.chosen.concat(null).findIndex((one) => one === null);
  if (!on) view.chosen = view.chosen.map((one) => (one === run ? null : one));
  else if (free >= MOST) return false;
  else view.chosen[free] = run;
  changed();
  return true;
}

// ---- parts of the page are drawn when they are seen and something has changed

const parts = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const part = parts.get(target.id);
    part.seen = isIntersecting;
    refresh(part);
  }
}, { rootMargin: "250px" });

function part(id, draw) {
  parts.set(id, { draw, fresh: false, seen: false });
  watcher.observe(at(id));
}

function refresh(one) {
  if (one.fresh || !(one.seen || slide)) return;
  one.fresh = true;
  one.draw();
}

let later = 0;
/** Draws anew what is named; without names everything, what is slow to draw when the reader's typing pauses. */
function changed(...only) {
  compare();
  for (const [id, one] of parts) if (!only.length || only.includes(id)) one.fresh = false;
  const quick = only.length || slide ? [...parts.keys()] : ["table", "best"];
  for (const [id, one] of parts) if (quick.includes(id)) refresh(one);
  clearTimeout(later);
  later = setTimeout(() => parts.forEach(refresh), 90);
}

const chip = (text, tone = "") => make("span", { text, kind: `chip ${tone}` });
const TONES = { done: "good", running: "live", failed: "bad", stopped: "warn", healthy: "good" };
const verdictChip = (name) => chip(name, TONES[name] ?? "warn");
const empty = (text) => make("p", { kind: "empty", text });
const swatch = (colour) => {
  const node = make("i", { kind: "swatch", "aria-hidden": "true" });
  if (colour !== null) node.style.setProperty("--swatch", `var(--c${colour})`);
  return node;
};
const named = ({ run, colour, text }) => make("b", {}, swatch(colour), make("span", { text: text ?? run.label }));
function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, text, selected: value === chosen })));
}
