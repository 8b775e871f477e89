// Plotly in the page's colours and letters, and the loss curves.

const probe = document.body.appendChild(make("i", { hidden: true }));
function paint(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
const colours = () => Array.from({ length: MOST }, (_, index) => paint(`c${index}`));
const faded = (colour, opacity) => colour.replace(/^rgba?\(([^)]+?)\)$/,
  (_, inside) => `rgba(${inside.split(",").slice(0, 3)}, ${opacity})`);
// Plotly reads a little HTML in every text that it shows.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "hexagon", "triangle-down"];

function axis(more) {
  const { title, ...rest } = more;
  return {
    gridcolor: paint("line"), linecolor: paint("line"), zerolinecolor: paint("line"), tickcolor: paint("line"),
    ticks: "outside", ticklen: 4, automargin: true, exponentformat: "power",
    title: { text: title, font: { size: slide ? 18 : 13 }, standoff: 10 }, ...rest,
  };
}

function plot(id, traces, { x, y, ...layout }) {
  const size = slide ? 16 : 12;
  return Plotly.react(at(id), traces, {
    margin: { l: 54, r: 14, t: 10, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false, hovermode: "closest", hoverdistance: 30,
    font: { family: getComputedStyle(document.body).fontFamily, size, color: paint("soft") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: paint("faint"), activecolor: paint("accent") },
    hoverlabel: {
      bgcolor: paint("card"), bordercolor: paint("faint"), font: { color: paint("ink"), size: 13 }, align: "left",
      namelength: -1,
    },
    uirevision: `${view.logX}${view.logY}`, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: axis(x), yaxis: axis(y), ...layout,
  }, {
    responsive: true, displaylogo: false, displayModeBar: slide ? false : undefined,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
}

/** Several runs' curves as one trace, with gaps between them. */
function joined(list, name) {
  const [x, y, customdata] = [[], [], []];
  for (const run of list) {
    const label = plain(run.label);
    for (const value of run[name].x) { x.push(value); customdata.push(label); }
    for (const value of run[name].y) y.push(value);
    x.push(null); y.push(null); customdata.push("");
  }
  return { x, y, customdata };
}

function lossTrace(list, name, colour, { width, symbol, opacity = 1 }) {
  const heldOut = name === "held_out";
  return {
    ...joined(list, name), type: "scatter", mode: heldOut && list.length <= 40 ? "lines+markers" : "lines", opacity,
    line: { color: colour, width, dash: heldOut ? "dot" : "solid" }, marker: { symbol, size: heldOut ? 7 : 4, color: colour },
    hovertemplate: `<b>%{customdata}</b><br>${heldOut ? "held-out" : "train"} loss %{y:.4~g}<br>%{x:,} images<extra></extra>`,
  };
}

/** The values of the parameter that colours, the most frequent ones first where there are too many. */
function colourGroups(key) {
  const ranked = [...grouped(visible, (run) => run.parameters[key] || "–")].sort((a, b) => b[1].length - a[1].length);
  const shown = ranked.slice(0, ranked.length > MOST ? MOST - 1 : MOST).sort((a, b) => inOrder(a[0], b[0]));
  const rest = ranked.slice(shown.length).flatMap(([, list]) => list);
  return { shown, rest };
}

function drawLoss() {
  const names = [view.train && "train", view.heldOut && "held_out"].filter(Boolean);
  const [ink, own] = [paint("faint"), colours()];
  const inColour = new Set(compared.map(({ run }) => run));
  const traces = [];
  const add = (list, colour, style) => {
    if (list.length) traces.push(...names.map((name) => lossTrace(list, name, colour, style)));
  };
  const key = at("loss-key");
  if (view.colourBy && content.parameters.includes(view.colourBy)) {
    const { shown, rest } = colourGroups(view.colourBy);
    add(rest, ink, { width: 1, symbol: "circle", opacity: 0.5 });
    shown.forEach(([, list], place) => add(list, own[place], { width: 1.2, symbol: SYMBOLS[place], opacity: 0.85 }));
    key.replaceChildren(...shown.map(([value], place) => make("span", {}, swatch(place), `${view.colourBy}=${value}`)),
      ...(rest.length ? [make("span", {}, swatch(null), "others")] : []));
  } else {
    add(visible.filter((run) => !inColour.has(run)), ink, { width: 1, symbol: "circle", opacity: 0.42 });
    for (const { run, colour } of compared) add([run], own[colour], { width: 2, symbol: SYMBOLS[colour] });
    const styles = names.length > 1 ? [make("span", { text: "solid: train, dotted: held-out" })] : [];
    const others = visible.filter((run) => run.train.x.length && !inColour.has(run)).length;
    key.replaceChildren(...compared.map(({ run, colour }) => make("span", {}, swatch(colour), run.label)),
      ...(others > 0 ? [make("span", {}, swatch(null), `${others} more`)] : []), ...styles);
  }
  const groups = new Set(visible.filter((run) => run.train.x.length).map((run) => run.group));
  at("loss-note").textContent = groups.size > 1 ? "These runs differ in schedule or weighting: their losses average over different "
    + "noise, so a lower loss is not a better one." : "";
  const any = visible.some((run) => names.some((name) => run[name].x.length));
  const empty = any ? [] : [{ text: "Nothing to draw yet", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
  return plot("loss-chart", traces, {
    x: { title: "images seen", type: view.logX ? "log" : "linear", tickformat: view.logX ? "" : "~s", exponentformat: "SI" },
    y: { title: "loss", type: view.logY ? "log" : "linear", exponentformat: "none" }, annotations: empty,
  });
}

function lossControls() {
  for (const [id, name] of [["show-train", "train"], ["show-held-out", "heldOut"], ["log-x", "logX"], ["log-y", "logY"]]) {
    at(id).checked = view[name];
    at(id).addEventListener("change", (event) => { view[name] = event.target.checked; changed("loss"); });
  }
  options(at("colour-by"), [["", "run"], ...content.parameters.map((key) => [key, key])], view.colourBy);
  at("colour-by").addEventListener("change", (event) => { view.colourBy = event.target.value; changed("loss"); });
}
