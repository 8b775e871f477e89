// The table: a row for each run, its samplers beneath; sorted, filtered, and ticked to compare.

const cells = new Map(); // a run's rows, made once
const lines = (run) => {
  if (!cells.has(run)) cells.set(run, { row: rowOf(run), samplers: run.samplers.map(samplerRow) });
  return cells.get(run);
};

function rowOf(run) {
  const box = make("input", { type: "checkbox", "aria-label": `compare ${run.label}` });
  box.addEventListener("change", () => {
    if (!tick(run, box.checked)) {
      box.checked = false;
      at("count").textContent = `${MOST} runs can be compared at once; untick one first.`;
    }
  });
  const first = make("td", { kind: "tick" }, make("label", {}, box, swatch(null)));
  return make("tr", {}, first, ...columns.map((column) => cell(run, column)));
}

function cell(run, { key, number, get, show }) {
  if (key === "run") return make("td", { kind: "run", text: run.label, title: run.folder });
  if (key === "state") {
    const progress = run.state === "running" && run.values.budget
      ? ` ${Math.min(100, Math.floor((100 * (run.values.images ?? 0)) / run.values.budget))}%` : "";
    return make("td", { title: run.why }, chip(run.state + progress, TONES[run.state]));
  }
  if (key === "verdict") return make("td", {}, ...[...new Set(verdicts(run))].map(verdictChip));
  const { warnings } = run;
  if (key === "warnings") return make("td", { kind: "number", text: warnings.length || "–", title: warnings.join("\n") });
  if (key === "images") return make("td", { kind: "number", text: compact(get(run)), title: format(get(run)) });
  const protocol = known(run.protocols?.[key]) ? content.protocols[run.protocols[key]].line : "";
  return make("td", { kind: number ? "number" : "", title: protocol, text: show ? show(run) : format(get(run)) });
}

function samplerRow(one) {
  const told = columns.filter(({ parameter }) => !parameter);
  const words = [one.nfe ? `${format(one.nfe)} evaluations per image` : "", one.seconds ? `${format(one.seconds, 3)} s` : ""];
  const wide = 1 + content.parameters.length;
  const label = [one.label, ...words].filter(Boolean).join(" · ");
  return make("tr", { kind: "sampler" }, make("td"), ...told.map(({ key, sampled, title }) => {
    if (key === "run") return make("td", { kind: "run", colSpan: wide, text: label, title: one.label });
    if (key === "state") return make("td", { title: one.why }, chip(one.state, TONES[one.state]));
    if (key === "verdict") return make("td", {}, ...one.diagnoses.flatMap((d) => d.verdicts).map(verdictChip));
    return make("td", sampled ? { kind: "number", text: format(one.metrics[key]), title } : {});
  }));
}

function sorted(list) {
  const { key, get, number, mixed } = columnOf(view.sort) ?? columns[0];
  const way = view.down ? -1 : 1;
  return [...list].sort((a, b) => {
    const [x, y] = [get(a), get(b)];
    // Figures of different protocols don't rank: each protocol is sorted by itself.
    const apart = mixed && known(x) && known(y) ? a.protocols[key] - b.protocols[key] : 0;
    if (apart) return apart;
    if (!known(x) || !known(y)) return known(y) - known(x); // what isn't known comes last, either way
    return way * (number ? x - y : inOrder(String(x), String(y)));
  });
}

function filtered() {
  const { test, faults } = parse(view.filter);
  const own = [];
  for (const [key, text] of Object.entries(view.narrow)) {
    const column = columnOf(key);
    const field = document.querySelector(`[data-narrow="${CSS.escape(key)}"]`);
    field?.setAttribute("aria-invalid", "false");
    if (!text || !column) continue;
    try {
      own.push(narrowed(column, text));
    } catch (fault) {
      faults.push(fault.message);
      field?.setAttribute("aria-invalid", "true");
    }
  }
  at("filter").setAttribute("aria-invalid", String(faults.length > 0));
  at("filter-fault").textContent = faults.join(" ");
  return runs.filter((run) => test(run) && own.every((one) => one(run)));
}

/** Filters, sorts and shows the rows, then everything that hangs on them. */
function tabulate() {
  visible = sorted(filtered());
  changed();
}

function drawTable() {
  const body = document.createDocumentFragment();
  for (const run of visible) {
    const { row, samplers } = lines(run);
    body.append(row, ...(view.samplers ? samplers : []));
  }
  const none = make("tr", {}, make("td", { kind: "nothing", colSpan: columns.length + 1, text: "No run matches the filter." }));
  document.querySelector("#grid tbody").replaceChildren(visible.length ? body : none);
  at("count").textContent = visible.length === runs.length ? `${runs.length}` : `${visible.length} of ${runs.length}`;
  for (const head of document.querySelectorAll("#grid th[data-key]")) {
    if (head.dataset.key === view.sort) head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  for (const run of visible) {
    const { row } = lines(run);
    const place = compared.find((one) => one.run === run);
    row.classList.toggle("chosen", view.chosen.includes(run));
    row.querySelector("input").checked = view.chosen.includes(run);
    row.querySelector(".swatch").replaceWith(swatch(place ? place.colour : null));
  }
  if (slide) fitTable();
}

function fitTable() { // a slide can't be scrolled
  const box = document.querySelector(".scroll"), grid = at("grid");
  grid.style.zoom = 1;
  if (box.clientWidth) grid.style.zoom = Math.min(1, box.clientWidth / box.scrollWidth);
}

function heads() {
  const titles = make("tr", {}, make("th", { kind: "tick" }, make("span", { kind: "hidden", text: "compare" })));
  const filters = make("tr", { kind: "filters", hidden: !view.narrowing }, make("th"));
  for (const column of columns) {
    const button = make("button", { type: "button", text: column.title, title: column.words ?? "" });
    button.addEventListener("click", () => {
      view.down = view.sort === column.key ? !view.down : column.better === "higher";
      view.sort = column.key;
      tabulate();
    });
    titles.append(make("th", { scope: "col", kind: column.number ? "number" : "", "data-key": column.key }, button));
    filters.append(make("th", {}, narrowing(column)));
  }
  document.querySelector("#grid thead").replaceChildren(titles, filters);
}

function narrowing(column) {
  const values = [...new Set(runs.map((run) => column.get(run)).filter(known).map(String))];
  const few = !["run", "verdict"].includes(column.key) && values.length <= 12 && (column.parameter || column.key === "state");
  const field = few ? make("select") : make("input", { type: "text", placeholder: column.number ? "<0.2" : "contains" });
  const now = view.narrow[column.key] ?? "";
  if (few) options(field, [["", "all"], ...values.sort(inOrder).map((value) => [`=${value}`, value])], now);
  else field.value = now;
  field.setAttribute("aria-label", `filter ${column.title}`);
  field.dataset.narrow = column.key;
  field.addEventListener(few ? "change" : "input", () => {
    view.narrow[column.key] = field.value;
    tabulate();
  });
  return field;
}

function tableControls() {
  const many = runs.reduce((sum, run) => sum + run.samplers.length, 0);
  view.samplers ??= many > 0 && many <= 40;
  at("samplers-label").hidden = !many;
  at("show-samplers").checked = view.samplers;
  at("show-samplers").addEventListener("change", (event) => { view.samplers = event.target.checked; changed("table"); });
  const text = columns.find((column) => column.parameter && !column.number);
  const first = text && runs.map((run) => text.get(run)).find(Boolean);
  const example = [text && first && `${text.key}=${/\s/.test(first) ? `"${first}"` : first}`, "held-out<0.2", "state!=failed"];
  at("example").textContent = example.filter(Boolean).join(" ");
  at("filter").placeholder = "Filter runs  ( / )";
  at("filter").value = view.filter;
  at("filter").addEventListener("input", (event) => { view.filter = event.target.value; tabulate(); });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    at("filter").focus();
  });
  const narrow = at("column-filters");
  narrow.setAttribute("aria-expanded", String(view.narrowing));
  narrow.addEventListener("click", () => {
    view.narrowing = !view.narrowing;
    narrow.setAttribute("aria-expanded", String(view.narrowing));
    document.querySelector("#grid .filters").hidden = !view.narrowing;
  });
  at("clear").addEventListener("click", () => {
    Object.assign(view, { filter: "", narrow: {}, chosen: [] });
    at("filter").value = "";
    heads();
    tabulate();
  });
  heads();
}
