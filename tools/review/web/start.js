// Puts the page together: first the table, then, when Plotly is there, the charts.

const THEMES = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
function themes() {
  const button = at("theme");
  const show = () => {
    document.documentElement.dataset.theme = view.theme;
    button.textContent = THEMES[view.theme];
    button.setAttribute("aria-label", `${THEMES[view.theme]}; press to change`);
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    view.theme = names[(names.indexOf(view.theme) + 1) % names.length];
    show();
    changed("loss", "calibration", "heatmap");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed("loss", "calibration", "heatmap"));
  if (slide) view.theme = "light";
  show();
}

function navigation() {
  for (const section of document.querySelectorAll("main > section.card")) {
    const link = make("a", { href: `#${section.id}`, text: section.dataset.nav });
    at("nav").append(link);
  }
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const link = document.querySelector(`nav a[href="#${target.id}"]`);
      if (isIntersecting) link?.setAttribute("aria-current", "true");
      else link?.removeAttribute("aria-current");
    }
  }, { rootMargin: "-70px 0px -55% 0px" });
  document.querySelectorAll("main > section.card").forEach((section) => seen.observe(section));
}

/** Scrolls to where the reader was, again while parts grow as they are drawn, until the reader scrolls or all is still. */
function comeBack({ id, top }) {
  const go = () => scrollBy({ top: at(id).getBoundingClientRect().top - top, behavior: "instant" });
  const growing = new ResizeObserver(go);
  const stop = () => growing.disconnect();
  growing.observe(document.querySelector("main"));
  for (const event of ["wheel", "pointerdown", "touchstart", "keydown"]) {
    addEventListener(event, stop, { once: true, passive: true });
  }
  setTimeout(stop, 1500);
  go();
}

function reloading() {
  if (!content.watch || slide) return;
  const box = at("reload");
  box.hidden = false;
  box.querySelector("span").textContent = `reloads every ${content.watch} s`;
  const input = box.querySelector("input");
  input.checked = view.reload;
  input.addEventListener("change", () => { view.reload = input.checked; });
  setInterval(() => { if (input.checked && !document.hidden) location.reload(); }, 1000 * content.watch);
  history.scrollRestoration = "manual";
  if (view.place) comeBack(view.place);
}

if (slide) {
  document.documentElement.dataset.slide = slide;
  at(slide)?.classList.add("stage");
  at(slide)?.querySelector("h2").after(make("span", { kind: "count", text: content.name }));
}
overview();
themes();
navigation();
tableControls();
lossControls();
bestControls();
heatControls();
problems();
part("table", drawTable);
part("best", drawBest);
part("doctor", drawDoctor);
for (const id of ["table", "best"]) parts.get(id).seen = true; // at once: they are what the reader waits for
tabulate();

window.report = {
  content, view,
  get compared() { return compared; },
  async charts() {
    part("samples", drawPreviews);
    part("trajectories", drawWays);
    part("calibration", drawLevels);
    part("evaluation", drawEvaluation);
    part("heatmap", drawHeat);
    parts.set("loss", { draw: drawLoss, fresh: true, seen: true });
    await drawLoss();
    performance.mark("ready");
    document.body.dataset.ready = String(Math.round(performance.now()));
    watcher.observe(at("loss"));
    if (slide) changed();
    reloading();
  },
};
