// What evaluations have found: a table for each protocol, since only figures of one rank, and the pictures of the records.

let allEvaluations = false;
const ROWS = 40; // rows shown before somebody asks for all

const signed = (value, error) => `${format(value)}${known(error) ? ` ± ${format(error, 2)}` : ""}`;
const sumOf = (a, b) => (known(a[1]) || known(b[1]) ? (a[1] ?? 0) + (b[1] ?? 0) : null);

/** For every figure the best of some records, and those that their standard errors don't tell apart from it. */
function marks(entries, figures) {
  const found = new Map(entries.map(({ one }) => [one, {}]));
  for (const name of figures) {
    const better = content.directions[name];
    const having = entries.filter(({ one }) => one.values[name]);
    if (!better || new Set(having.map(({ one }) => one.values[name][0])).size < 2) continue;
    const sign = better === "higher" ? -1 : 1;
    const [first] = [...having].sort((a, b) => sign * (a.one.values[name][0] - b.one.values[name][0]));
    const top = first.one.values[name];
    for (const { one } of having) {
      const own = one.values[name];
      const within = sumOf(own, top);
      if (own[0] === top[0]) found.get(one)[name] = "best";
      else if (within !== null && Math.abs(own[0] - top[0]) < within) found.get(one)[name] = "tied";
    }
  }
  return found;
}

function figureCell(one, name, marked) {
  const value = one.values[name];
  if (!value) return make("td", { kind: "number", text: "–" });
  const mark = marked.get(one)[name] ?? "";
  const text = `${signed(...value)}${mark === "tied" ? " ≈" : ""}`;
  const title = [name, { best: "the best of these", tied: "not distinguishable from the best" }[mark]].filter(Boolean).join("; ");
  return make("td", { kind: `number ${mark}`, title, text });
}

/** What real images have in the place of samples: the floor of a figure. */
function realWords(entries, name) {
  const values = [...new Set(entries.map(({ one }) => one.values[name]?.[2]).filter(known))];
  return values.length ? [make("small", { text: `real images ${values.map((value) => format(value)).join(", ")}` })] : [];
}

const whose = ({ run, one }) => {
  const place = compared.find((other) => other.run === run);
  return make("span", { kind: "whose", title: one.file }, swatch(place ? place.colour : null), run.label);
};
const subjectOf = ({ one }) => make("td", { kind: "protocol", text: one.subject });

/** Records of one protocol as a table: a row for each, or, where the figures are many and the records few, for each figure. */
function evaluationTable(entries) {
  const figures = [...new Set(entries.flatMap(({ one }) => Object.keys(one.values)))];
  const marked = marks(entries, figures);
  const line = (first, ...rest) => make("tr", {}, make("td", { kind: "run" }, first), ...rest);
  const head = (...names) => make("thead", {}, make("tr", {}, ...names));
  const title = (text, kind = "", ...more) => make("th", { scope: "col", kind }, text, ...more);
  if (figures.length > 8 && entries.length <= 6) {
    const runsAcross = entries.map((entry) => make("th", { scope: "col", kind: "number" }, whose(entry),
      make("small", { text: entry.one.subject })));
    return make("table", {}, head(title("figure"), ...runsAcross), make("tbody", {}, ...figures.map((name) => line(
      make("span", { text: name }), ...entries.map(({ one }) => figureCell(one, name, marked))))));
  }
  return make("table", {}, head(title("run"), ...figures.map((name) => title(name, "number", ...realWords(entries, name))), title("measured on")),
    make("tbody", {}, ...entries.map((entry) => line(
      whose(entry), ...figures.map((name) => figureCell(entry.one, name, marked)), subjectOf(entry)))));
}

function thumbnail({ run, one, sheet }) {
  const label = `${run.label}, ${one.metric}: ${sheet.name}`;
  const small = make("img", { alt: label });
  const node = make("details", { kind: "thumb" }, make("summary", {}, small, make("span", { kind: "small", text: label }),
    make("span", { kind: "small", text: one.subject })));
  picture(sheet.picture).then((image) => { small.src = image.src; small.dataset.drawn = String(sheet.picture); });
  node.addEventListener("toggle", async () => {
    if (!node.open || node.querySelector("figure")) return;
    const image = (await picture(sheet.picture)).cloneNode();
    image.alt = label;
    node.append(make("figure", { kind: "figure" }, image));
  });
  return node;
}

function drawEvaluation() {
  const every = visible.flatMap((run) => run.evaluations.map((one) => ({ run, one })));
  const shown = allEvaluations ? every : every.slice(0, ROWS);
  const blocks = [...grouped(shown, ({ one }) => one.protocol)].sort(([a], [b]) => a - b).map(([index, entries]) => {
    const { metric, line, whole, differs, count } = content.protocols[index];
    const several = count > 1 ? ` · one of ${count} protocols, which are not comparable` : "";
    return make("article", { kind: "measured" }, make("h3", {}, metric, make("span", { kind: "count", text: several })),
      make("p", { kind: "note protocol", title: whole, text: line }),
      ...(differs ? [make("p", { kind: "note fault", text: `Differs: ${differs}` })] : []),
      make("div", { kind: "scroll", tabIndex: 0, role: "region", "aria-label": `${metric}: figures` }, evaluationTable(entries)));
  });
  const how = "No run shown has been evaluated: python launch/evaluate.py run=<folder> metrics=[quality] sampler=<name>";
  at("evaluations").replaceChildren(...(blocks.length ? blocks : [empty(how)]));
  at("evaluation-note").textContent = blocks.length ? "Bold: the best within a protocol. ≈: within the sum of both standard errors "
    + "of the best." : "";
  const sheets = shown.flatMap(({ run, one }) => one.pictures.map((sheet) => ({ run, one, sheet })));
  at("evaluation-pictures").replaceChildren(...sheets.map(thumbnail));
  at("more-evaluations").hidden = shown.length === every.length;
  at("more-evaluations").textContent = `Show all ${every.length}`;
  at("more-evaluations").onclick = () => {
    allEvaluations = true;
    changed("evaluation");
  };
}
