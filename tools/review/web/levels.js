// Calibration and loss by noise level, at the last measurement or at an earlier one.

const MEASURES = [
  { key: "explained", title: "share of the noise explained", from: "calibration", right: 1, range: [-0.15, 1.12] },
  { key: "slope", title: "slope", from: "calibration", right: 1, range: [-0.15, 1.6] },
  { key: "gain", title: "gain over a Gaussian", from: "calibration", right: 0, range: [-0.6, 1.08] },
  { key: "loss", title: "train loss", from: "by_sigma", log: true },
];
let levelAt = null; // images; null: the last

/** A run's measurements of one kind; where training has made none, the doctor's. */
function measurements(run, from) {
  if (run[from].length || from !== "calibration") return run[from];
  return diagnosesOf(run).find((one) => one.calibration.length)?.calibration ?? [];
}
const until = (list, images) => (images === null ? list.at(-1) : list.findLast((one) => one.images <= images));

function drawLevels() {
  const has = (run, from, key) => measurements(run, from).some((one) => one[key].some(known));
  const shown = MEASURES.filter(({ from, key }) => compared.some(({ run }) => has(run, from, key)));
  const measured = compared.flatMap(({ run }) => [...measurements(run, "calibration"), ...run.by_sigma]);
  const times = [...new Set(measured.map((one) => one.images))].sort((a, b) => a - b);
  const slider = at("level-slider");
  slider.closest(".controls").hidden = times.length < 2;
  slider.max = Math.max(0, times.length - 1);
  const place = levelAt === null ? times.length - 1 : Math.max(0, times.findLastIndex((time) => time <= levelAt));
  slider.value = place;
  slider.oninput = () => {
    levelAt = Number(slider.value) === times.length - 1 ? null : times[Number(slider.value)];
    changed("calibration");
  };
  const words = times.length ? `${format(times[place])} images` : "";
  at("level-at").textContent = words;
  slider.setAttribute("aria-valuetext", words);
  at("calibration-key").replaceChildren(...compared.map((one) => make("span", {}, swatch(one.colour), one.run.label)));
  const box = at("level-charts");
  const wanted = shown.map(({ key }) => `level-${key}`);
  if ([...box.querySelectorAll(".chart")].map((node) => node.id).join() !== wanted.join()) {
    box.querySelectorAll(".chart").forEach((node) => Plotly.purge(node));
    box.replaceChildren(...shown.map(({ key, title }) => make("div", {}, make("h3", { text: title }),
      make("div", { kind: "chart", id: `level-${key}`, role: "img", "aria-label": `${title} against the noise level` }))));
    if (!shown.length) box.append(empty("No calibration has been measured (diagnose.every) for the runs shown."));
  }
  const last = levelAt === null;
  return Promise.all(shown.map((measure) => drawMeasure(measure, last ? null : times[place])));
}

function drawMeasure({ key, title, from, right, range, log }, images) {
  const own = colours();
  const traces = compared.flatMap(({ run, colour }) => {
    const list = measurements(run, from);
    const line = (one, faint) => one && {
      x: one.sigma, y: one[key], type: "scatter", mode: "lines+markers",
      customdata: one.sigma.map(() => [plain(run.label), one.images]),
      line: { color: faint ? faded(own[colour], 0.3) : own[colour], width: faint ? 1.2 : 2 },
      marker: { symbol: SYMBOLS[colour], size: faint ? 3 : 6, color: faint ? faded(own[colour], 0.3) : own[colour] },
      hoverinfo: faint ? "skip" : undefined,
      hovertemplate: faint ? undefined : `<b>%{customdata[0]}</b><br>σ %{x:.3~g}<br>${title} %{y:.4~g}<br>`
        + "%{customdata[1]:,} images<extra></extra>",
    };
    return [images === null ? null : line(list.at(-1), true), line(until(list, images), false)].filter(Boolean);
  });
  const values = traces.flatMap((trace) => trace.y).filter(known);
  const outside = range ? values.filter((value) => value < range[0] || value > range[1]) : values;
  const inside = outside.length < 0.5 * values.length; // else all would be cut off
  const line = { color: paint("faint"), dash: "dot", width: 1 };
  const shapes = right === undefined ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: right, y1: right, line }];
  return plot(`level-${key}`, traces, {
    x: { title: "noise level σ", type: "log", tickformat: "~g", dtick: 1 }, shapes, uirevision: key,
    y: { title: "", type: log ? "log" : "linear", exponentformat: "none", ...(inside ? { range: [...range] } : {}) },
  });
}
