// Any two swept parameters against any metric.

const heat = { x: "", y: "", metric: "", how: "best" };
const swept = [...content.parameters, ...content.sampler_parameters.filter((key) => !content.parameters.includes(key))]
  .filter((key) => new Set(samplings(runs).map((one) => one.parameters[key] ?? "")).size > 1);

/** Every run with each of its samplers, or alone where it has none, as parameters and values. */
function samplings(list) {
  const sampled = content.numbers.filter((column) => column.sampled).map(({ key }) => [key, null]);
  return list.flatMap((run) => (run.samplers.length ? run.samplers : [null]).map((one) => ({
    run, parameters: { ...run.parameters, ...one?.parameters },
    // Of a sampler only what was measured on its own images.
    values: one ? { ...run.values, ...Object.fromEntries(sampled), ...one.metrics, nfe: one.nfe, seconds: one.seconds } : run.values,
  })));
}

const heatMetrics = () => [
  ...content.numbers.filter(({ key, mixed }) => !mixed && runs.some((run) => known(run.values[key]))),
  ...[["nfe", "evaluations per image"], ["seconds", "sampling time in seconds"]]
    .filter(([key]) => runs.some((run) => run.samplers.some((one) => one[key])))
    .map(([key, title]) => ({ key, title, better: "lower", sampled: true })),
];

function cellsOf(metric) {
  const ofSamplers = metric.sampled || [heat.x, heat.y].some((key) => !content.parameters.includes(key));
  const points = ofSamplers ? samplings(visible) : visible.map(({ parameters, values }) => ({ parameters, values }));
  const measured = points.filter(({ values }) => known(values[metric.key]));
  const along = (key) => [...new Set(points.map(({ parameters }) => parameters[key] ?? ""))].sort(inOrder);
  const [xs, ys] = [along(heat.x), along(heat.y)];
  const cell = (x, y) => {
    const here = measured.filter(({ parameters: p }) => (p[heat.x] ?? "") === x && (p[heat.y] ?? "") === y);
    const values = here.map((one) => one.values[metric.key]);
    if (!values.length) return { value: null, count: 0 };
    const best = metric.better === "higher" ? Math.max(...values) : Math.min(...values);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return { value: { best, mean, count: values.length }[heat.how], count: values.length };
  };
  return { xs, ys, grid: ys.map((y) => xs.map((x) => cell(x, y))), what: ofSamplers ? "samplings" : "runs" };
}

function drawHeat() {
  const metric = heatMetrics().find(({ key }) => key === heat.metric);
  const possible = swept.length >= 2 && metric;
  at("heat-chart").hidden = !possible;
  at("heatmap").querySelector(".controls").hidden = !possible;
  if (!possible) {
    at("heat-note").textContent = swept.length >= 2 ? "Nothing has been measured yet."
      : "A heatmap needs two parameters that vary within the study.";
    return null;
  }
  const { xs, ys, grid, what } = cellsOf(metric);
  const name = (value) => plain(value === "" ? "–" : value);
  const height = Math.max(240, Math.min(720, 130 + 52 * ys.length));
  at("heat-chart").style.height = slide ? "" : `${height}px`;
  const groups = new Set(visible.map((run) => run.group));
  at("heat-note").textContent = metric.compares && groups.size > 1 && heat.how !== "count"
    ? "Losses of different schedules or weightings are not comparable; compare along the other parameters." : "";
  const [title, better] = heat.how === "count" ? [what, "higher"] : [metric.title, metric.better];
  return plot("heat-chart", [{
    type: "heatmap", z: grid.map((row) => row.map(({ value }) => value)), x: xs.map((_, i) => i), y: ys.map((_, i) => i),
    text: grid.map((row) => row.map(({ value }) => (value === null ? "" : format(value)))), texttemplate: "%{text}",
    textfont: { size: slide ? 18 : 13 }, hoverongaps: false, xgap: 3, ygap: 3,
    customdata: grid.map((row, j) => row.map(({ count }, i) => [name(xs[i]), name(ys[j]), count])),
    colorscale: "Cividis", reversescale: better === "lower", // the bright end is the good one
    hovertemplate: `${plain(heat.x)} %{customdata[0]}<br>${plain(heat.y)} %{customdata[1]}<br>`
      + `<b>${plain(title)} %{text}</b><br>%{customdata[2]} ${what}<extra></extra>`,
    colorbar: { thickness: 12, outlinewidth: 0, title: { text: plain(title), side: "right" } },
  }], {
    x: { title: plain(heat.x), tickvals: xs.map((_, i) => i), ticktext: xs.map(name), showgrid: false, zeroline: false },
    y: {
      title: plain(heat.y), tickvals: ys.map((_, i) => i), ticktext: ys.map(name), showgrid: false, zeroline: false,
      autorange: "reversed",
    },
    uirevision: `${heat.x} ${heat.y}`, dragmode: false, ...(slide ? {} : { height }), // Plotly looks at a box's size once
  });
}

function heatControls() {
  const metrics = heatMetrics();
  heat.x = swept[0] ?? "";
  heat.y = swept[1] ?? "";
  heat.metric = (metrics.find(({ key }) => key === "best_held_out") ?? metrics[0])?.key ?? "";
  for (const name of ["x", "y"]) options(at(`heat-${name}`), swept.map((key) => [key, key]), heat[name]);
  options(at("heat-metric"), metrics.map(({ key, title }) => [key, title]), heat.metric);
  for (const name of ["x", "y", "metric", "how"]) {
    at(`heat-${name}`).addEventListener("change", (event) => {
      const other = { x: "y", y: "x" }[name];
      if (other && event.target.value === heat[other]) { // the same on both axes: they change places
        heat[other] = heat[name];
        at(`heat-${other}`).value = heat[other];
      }
      heat[name] = event.target.value;
      changed("heatmap");
    });
  }
}
