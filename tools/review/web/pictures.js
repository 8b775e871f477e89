// Samples and trajectories: sheets of tiles, decoded when they are looked at.

let sheets = null; // parsed at the first look: most of the file
const decoded = new Map();
const whole = new Promise((resolve) => {
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve, { once: true });
  else resolve();
});

function picture(number) {
  if (!decoded.has(number)) {
    decoded.set(number, whole.then(async () => {
      sheets ??= JSON.parse(at("pictures").textContent);
      const image = new Image();
      image.src = `data:image/jpeg;base64,${sheets[number]}`;
      await image.decode();
      return image;
    }));
  }
  return decoded.get(number);
}

/** Draws some tiles of a sheet as a grid: each pixel a square of whole pixels, so that it stays sharp and even. */
async function draw(canvas, sheet, tiles, across) {
  const turn = (canvas.turn = (canvas.turn ?? 0) + 1);
  const { width, height, columns } = sheet;
  const scale = Math.max(1, Math.ceil(440 / (across * width)));
  const [w, h, gap] = [width * scale, height * scale, Math.max(2, Math.round(scale / 2) * 2)];
  const down = Math.ceil(tiles.length / across);
  canvas.style.aspectRatio = `${across * (w + gap) - gap} / ${down * (h + gap) - gap}`;
  const image = await picture(sheet.picture);
  if (canvas.turn !== turn) return; // the slider has moved on
  canvas.width = across * (w + gap) - gap;
  canvas.height = down * (h + gap) - gap;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  tiles.forEach((tile, place) => pen.drawImage(
    image, (tile % columns) * width, Math.floor(tile / columns) * height, width, height,
    (place % across) * (w + gap), Math.floor(place / across) * (h + gap), w, h,
  ));
  canvas.dataset.drawn = `${sheet.picture}:${tiles[0]}`;
}
const all = (sheet) => Array.from({ length: sheet.count }, (_, index) => index);

function card(heading, words, label) {
  const small = make("span", { kind: "small" });
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const lines = words ? [make("span", { kind: "small", text: words })] : [];
  return { small, canvas, figure: make("figure", {}, make("figcaption", {}, heading, ...lines, small), canvas) };
}

// ---- during training

let previewAt = null; // images; null: the last
function drawPreviews() {
  const shown = compared.filter(({ run }) => run.previews.length);
  const times = [...new Set(shown.flatMap(({ run }) => run.previews.map((one) => one.images)))].sort((a, b) => a - b);
  const cards = shown.map((one) => ({ ...one, ...card(named(one), "", `samples of ${one.run.label}`) }));
  at("previews").replaceChildren(...cards.map(({ figure }) => figure));
  if (!cards.length) at("previews").append(empty("The runs shown drew no samples during training (preview.every)."));
  const slider = at("preview-slider");
  slider.closest(".controls").hidden = times.length < 2;
  slider.max = Math.max(0, times.length - 1);
  slider.value = previewAt === null ? times.length - 1 : Math.max(0, times.findLastIndex((time) => time <= previewAt));
  const go = () => {
    const images = times[Number(slider.value)];
    const words = `${format(images)} images`;
    at("preview-at").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    for (const { run, small, canvas } of cards) {
      const sheet = run.previews.findLast((one) => one.images <= images) ?? run.previews[0];
      small.textContent = `${format(sheet.images)} images`;
      draw(canvas, sheet, all(sheet), sheet.columns);
    }
  };
  slider.oninput = () => {
    previewAt = Number(slider.value) === times.length - 1 ? null : times[Number(slider.value)];
    go();
  };
  if (cards.length) go();
  drawFinals();
}

function drawFinals() {
  const each = compared.flatMap((one) => one.run.samplers.map((sampler) => ({ ...one, sampler })));
  const ends = each.filter(({ sampler }) => sampler.picture);
  at("finals-part").hidden = !ends.length;
  at("finals").replaceChildren(...ends.map(({ sampler, ...one }) => {
    const cost = sampler.nfe && `${format(sampler.nfe)} evaluations per image`;
    const words = [one.run.label !== sampler.label && one.run.label, cost].filter(Boolean).join(" · ");
    const chips = sampler.diagnoses.flatMap((said) => said.verdicts).map(verdictChip);
    const heading = named({ ...one, text: sampler.label });
    const { figure, canvas, small } = card(heading, words, `samples of ${one.run.label}, ${sampler.label}`);
    if (chips.length) figure.querySelector("figcaption").append(make("div", {}, ...chips));
    small.remove();
    draw(canvas, sampler.picture, all(sampler.picture), sampler.picture.columns);
    return figure;
  }));
}

// ---- trajectories

const way = { align: "step", at: null };
function drawWays() {
  const cards = compared.flatMap((one) => one.run.samplers.filter(({ trajectory }) => trajectory).map((sampler) => ({
    sheet: sampler.trajectory,
    ...card(named({ ...one, text: sampler.label }), one.run.label, `the trajectory of ${sampler.label} on ${one.run.label}`),
  })));
  at("ways").replaceChildren(...cards.map(({ figure }) => figure));
  at("trajectories").querySelector(".controls").hidden = !cards.length;
  if (!cards.length) {
    at("ways").append(empty("The samplers of the runs shown have saved no trajectories."));
    return;
  }
  const levels = cards.flatMap(({ sheet }) => sheet.frames.map(({ sigma }) => sigma)).filter(known);
  const sigmas = [...new Set(levels)].sort((a, b) => b - a);
  const bySigma = way.align === "sigma" && sigmas.length > 1;
  const places = bySigma ? sigmas.length : Math.max(...cards.map(({ sheet }) => sheet.frames.length));
  const slider = at("step-slider");
  slider.max = places - 1;
  slider.value = way.at === null ? places - 1 : Math.round(way.at * (places - 1));
  const go = () => {
    const part = places > 1 ? Number(slider.value) / (places - 1) : 1;
    const words = bySigma ? `σ ${format(sigmas[Number(slider.value)], 3)}` : `${Math.round(100 * part)}% of the trajectory`;
    at("step-at").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    for (const { sheet, small, canvas } of cards) {
      const { frames } = sheet;
      const frame = bySigma ? nearest(frames, sigmas[Number(slider.value)]) : Math.round(part * (frames.length - 1));
      const { step, sigma } = frames[frame];
      small.textContent = `step ${format(step)}${sigma === null ? "" : ` · σ ${format(sigma, 3)}`}`;
      const column = Array.from({ length: sheet.rows }, (_, row) => row * sheet.columns + frame);
      draw(canvas, sheet, column, sheet.rows > 4 && sheet.rows % 4 === 0 ? 4 : Math.ceil(Math.sqrt(sheet.rows)));
    }
  };
  slider.oninput = () => {
    way.at = places > 1 ? Number(slider.value) / (places - 1) : null;
    go();
  };
  at("align").onchange = (event) => {
    Object.assign(way, { align: event.target.value, at: null });
    changed("trajectories");
  };
  go();
}

/** The frame whose level is nearest in log σ; the last of several, which has gone farthest there. */
function nearest(frames, sigma) {
  const distance = ({ sigma: own }) => (own === null ? Infinity : Math.abs(Math.log((own + 1e-9) / (sigma + 1e-9))));
  return frames.reduce((best, frame, place) => (distance(frame) <= distance(frames[best]) ? place : best), 0);
}
