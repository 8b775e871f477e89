// What is said in words: the head of the page, the best configuration, the doctor's verdicts, problems.

function overview() {
  document.documentElement.dataset.theme = view.theme;
  at("brand").textContent = content.name;
  at("kicker").textContent = content.kind === "study" ? "Study" : "Run";
  at("title").textContent = content.name;
  const created = content.created && `created ${content.created}`;
  const facts = [created, content.code && `code ${content.code}`, `report of ${content.written}`, `${content.folder}`];
  at("subtitle").textContent = facts.filter(Boolean).join(" · ");
  at("submitted").hidden = !content.command.length;
  at("submitted").querySelector("pre").textContent = `python launch/sweep.py ${content.command.join(" ")}`;
  const states = grouped(runs, (run) => run.state);
  const order = ["done", "running", "failed", "stopped", "waiting", "unknown"].filter((state) => states.get(state)?.length);
  const bar = make("div", { kind: "states", "aria-hidden": "true" }, ...order.map((state) => {
    const part = make("i", { kind: state });
    part.style.flex = states.get(state).length;
    return part;
  }));
  const sum = (key) => runs.reduce((total, run) => total + (run.values[key] ?? 0), 0);
  const scored = runs.filter((run) => known(run.values.best_held_out));
  const [best] = [...scored].sort((a, b) => a.values.best_held_out - b.values.best_held_out);
  const apart = new Set(scored.map((run) => run.group)).size > 1;
  const samplings = runs.flatMap((run) => run.samplers);
  const hours = columnOf("hours");
  const counts = order.map((state) => `${states.get(state).length} ${state}`).join(", ");
  const drawn = samplings.filter((one) => one.state === "done").length;
  tile("Runs", `${states.get("done")?.length ?? 0} of ${runs.length}`, counts, bar);
  if (samplings.length) tile("Samplings", `${drawn} of ${samplings.length}`, "done");
  const loss = apart ? null : best?.values.best_held_out ?? null;
  tile("Lowest held-out loss", format(loss), apart ? "differs by schedule; see Best" : best ? best.label : "not measured");
  const longest = Math.max(0, ...runs.map((run) => run.values.images ?? 0));
  tile("Images seen", compact(sum("images")), `${compact(longest)} by the longest run`);
  const timed = runs.some((run) => known(run.values.hours));
  const words = timed ? `${format(sum("restarts"))} restarts` : "not recorded";
  tile(hours.title[0].toUpperCase() + hours.title.slice(1), timed ? format(sum("hours"), 3) : "–", words);
  tile("Problems", format(content.problems.length), content.problems.length ? "named below" : "none found");
}

function tile(name, value, words, bar) {
  const told = make("dd", { text: value }, ...(bar ? [bar] : []), make("small", { text: words, title: words }));
  at("tiles").append(make("div", {}, make("dt", { text: name }), told));
}

// ---- the best configuration

const choice = { metric: "", group: "" };
function bestControls() {
  const metrics = content.numbers.filter(({ key, asked }) => asked && runs.some((run) => known(run.values[key])));
  choice.metric = (metrics.find(({ key }) => key === "best_held_out") ?? metrics[0])?.key ?? "";
  options(at("best-metric"), metrics.map(({ key, asked }) => [key, asked]), choice.metric);
  at("best-metric").addEventListener("change", (event) => {
    Object.assign(choice, { metric: event.target.value, group: "" });
    changed("best");
  });
  at("best-group").addEventListener("change", (event) => {
    choice.group = event.target.value;
    changed("best");
  });
  at("copy").addEventListener("click", copy);
  if (content.kind === "run") at("best-title").textContent = "Command";
}

function drawBest() {
  const metric = content.numbers.find(({ key }) => key === choice.metric);
  const has = visible.filter((run) => metric && run.state !== "failed" && known(run.values[metric.key]));
  const way = metric?.better === "higher" ? -1 : 1;
  has.sort((a, b) => way * (a.values[metric.key] - b.values[metric.key]));
  const groups = [...new Set(has.map((run) => run.group))];
  if (!groups.includes(choice.group)) [choice.group] = groups;
  const apart = Boolean(metric?.compares) && groups.length > 1;
  at("best-group-label").hidden = !apart;
  const within = (group) => has.filter((run) => run.group === group);
  const entries = groups.map((one) => [one, `${one || "config unknown"} (${within(one).length})`]);
  if (apart) options(at("best-group"), entries, choice.group);
  const among = apart ? within(choice.group) : has;
  const [best, second] = among;
  if (!best) {
    at("best-words").textContent = "Nothing has been measured yet on the runs shown.";
    at("command").textContent = content.kind === "run" ? runs[0].command : "";
  } else {
    const rest = second ? `; next ${format(second.values[metric.key])} (${second.label})` : "";
    const many = `of ${among.length} comparable ${among.length === 1 ? "run" : "runs"}`;
    at("best-words").textContent = [`${best.label}: ${metric.title} ${format(best.values[metric.key])}, ${many}${rest}.`,
      metric.words && `Protocol: ${metric.words}.`,
      apart && "Losses of different schedules or weightings average over different noise and are not comparable.",
      best.command_note].filter(Boolean).join(" ");
    const sampler = metric.sampled && best.samplers.find((one) => one.metrics[metric.key] === best.values[metric.key]);
    at("command").textContent = [best.command, sampler?.command].filter(Boolean).join("\n");
  }
  at("copied").textContent = "";
  at("copy").disabled = !at("command").textContent;
}

async function copy() {
  const text = at("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    at("copied").textContent = "Copied.";
  } catch { // not allowed for a page from a file: the browser's own copy, or the reader's
    getSelection().selectAllChildren(at("command"));
    at("copied").textContent = document.execCommand("copy") ? "Copied." : "Selected: press Ctrl+C.";
  }
}

// ---- the doctor

let allReports = false;
const FIRST = 12; // reports shown before somebody asks for all
function drawDoctor() {
  const reports = visible.flatMap((run) => [...run.diagnoses.map((one) => ({ run, one, who: one.sampler })),
    ...run.samplers.flatMap((sampler) => sampler.diagnoses.map((one) => ({ run, one, who: sampler.label })))]);
  const counts = new Map();
  for (const run of runs) for (const name of new Set(verdicts(run))) counts.set(name, (counts.get(name) ?? 0) + 1);
  at("verdicts").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => {
    const pressed = view.narrow.verdict === name;
    const node = make("button", {
      type: "button", kind: verdictChip(name).className, text: `${name} ${count}`, "aria-pressed": String(pressed),
    });
    node.addEventListener("click", () => {
      view.narrow.verdict = pressed ? "" : name;
      heads();
      tabulate();
    });
    return node;
  }));
  const shown = allReports ? reports : reports.slice(0, FIRST);
  at("reports").replaceChildren(...shown.map(({ run, one, who }) => {
    const place = compared.find((other) => other.run === run);
    const node = make("article", { kind: "report" }, make("div", {}, ...one.verdicts.map(verdictChip)),
      make("h3", { text: `${run.label} × ${who}`, style: "margin:0" }), make("p", { text: one.words }));
    if (place) node.querySelector("h3").prepend(swatch(place.colour), " ");
    if (one.cure) node.append(make("p", {}, "Prescribed: ", make("code", { text: one.cure })));
    if (one.figure) node.append(unfolding(one.figure, `${run.label} × ${who}: figure of the diagnosis`));
    return node;
  }));
  const how = "No run shown has been diagnosed: python launch/diagnose.py run=<folder> sampler=<name>";
  if (!shown.length) at("reports").append(empty(how));
  at("more-reports").hidden = shown.length === reports.length;
  at("more-reports").textContent = `Show all ${reports.length}`;
  at("more-reports").onclick = () => {
    allReports = true;
    changed("doctor");
  };
}

function unfolding(sheet, label) {
  const node = make("details", {}, make("summary", { text: "Figure" }));
  node.addEventListener("toggle", async () => {
    if (!node.open || node.querySelector("img")) return;
    const image = (await picture(sheet.picture)).cloneNode();
    image.alt = label;
    node.append(make("figure", { kind: "figure" }, image));
  });
  return node;
}

function problems() {
  const failures = runs.flatMap((run) => [run, ...run.samplers].filter((one) => one.why && one.state === "failed")
    .map((one) => ({ where: one === run ? run.label : `${run.label} × ${one.label}`, what: one.why })));
  const warned = runs.flatMap((run) => run.warnings.map((words) => ({ where: run.label, what: words })));
  const rows = [...failures, ...warned, ...content.problems];
  const lines = rows.slice(0, 300).map(({ where, what }) => make("div", { kind: "problem" }, make("code", { text: where }),
    make("span", { text: what })));
  at("problem-list").replaceChildren(...lines);
  const note = rows.length > 300 ? `and ${rows.length - 300} more`
    : rows.length ? "" : "All files were read, no run failed, and there were no warnings.";
  at("problem-list").append(make("p", { kind: "note", text: note }));
  at("footer").textContent = [...content.notes, `Written ${content.written} from ${content.folder}`].join(" ");
}
