// The controls beside the photo. Native inputs with labels, so that keyboard and screen reader work as everywhere.
import { COLORS } from "./colors.js";
import { brief, byId, digits, el } from "./dom.js";
import { cached, maskArea, spreadOf } from "./maps.js";
import { queryButton } from "./queries.js";
import { VIEWS, defaults } from "./state.js";
import { viewFor } from "./views.js";
import { whyButton } from "./whys.js";

const NAMES = {
  flow: ["d_f", "divergence"],
  circles: ["circles", "size, d_k"],
  points: ["kernel", "each point"],
  sampling: ["sampling", "all points"],
  modulation: ["modulation", "Δm"],
  segments: ["segments", "regions"],
  queries: ["queries", "attention"],
};

// Views that are of no use where no layer has cells.
const ONLY_QUERIES = Object.fromEntries(VIEWS.map((view) => [view, view === "queries"]));
const BINS = 80; // of the histogram
const FARTHEST = 600; // cells, as Python cuts offsets

function choice(name, value, words, set, ...more) {
  const input = el("input", { type: "radio", name, value, change: () => set(value) });
  return el("label", { class: `choice ${name}` }, input, el("span", {}, ...words), ...more);
}

function sizeOf({ cells, stride, size }) {
  const px = cells.reduction.map((value, axis) => brief(value * stride[axis]));
  return `${size.join("×")} · ${px[0] === px[1] ? px[0] : px.join("×")} px`;
}

function toggle(id, words, set) {
  const input = el("input", { type: "checkbox", id, change: () => set(input.checked) });
  return el("label", { class: "toggle", for: id }, input, el("span", {}, words));
}

function fieldset(legend, ...children) {
  return el("fieldset", {}, el("legend", {}, legend), ...children);
}

export class Panel {
  // `calls`: set(patch of the state), and the header's actions by name.
  constructor(calls) {
    this.calls = calls;
    const { set } = calls;
    this.head(calls);
    this.views = fieldset("View", el("div", { class: "chips" }, ...VIEWS.map((view) =>
      choice("view", view, [el("b", {}, NAMES[view][0]), el("small", {}, NAMES[view][1])], () => set({ view })))));
    this.layers = fieldset("Layer");
    this.gaps = el("p", { class: "hint" });
    this.groups = el("select", { id: "group", change: () => set({ group: Number(this.groups.value) }) });
    this.groupWords = el("label", { for: "group" }, "Offset group");
    this.groupRow = el("p", { class: "row" }, this.groupWords, this.groups);
    this.kernel = fieldset("Kernel point");
    this.controls = {};
    this.drawing = fieldset(
      "Drawing",
      this.slider("density", "Density", 6, 120, 1),
      this.slider("length", "Length", -4, 4, 0.25),
      this.slider("opacity", "Opacity", 0, 1, 0.05),
      this.slider("light", "Photo", 0, 1, 0.05),
      el(
        "p",
        { class: "row" },
        toggle("true", "true length (× 1)", (value) => set({ true: value })),
        el(
          "button",
          {
            type: "button",
            class: "quiet",
            click: () => set(pick(defaults(), ["density", "length", "true", "opacity", "light", "div", "mask"])),
          },
          "Reset",
        ),
      ),
    );
    this.histogram = el("canvas", { class: "histogram", "aria-hidden": "true" });
    this.area = el("output", { id: "area", for: "div" });
    this.mask = fieldset(
      "Divergence below a threshold",
      this.histogram,
      this.slider("div", "Threshold", -1, 1, 0.001),
      el("p", { class: "row" }, toggle("mask", "show", (value) => set({ mask: value })), this.area),
    );
    this.found = el("ul", { class: "found" });
    this.detections = fieldset(
      "Detections",
      toggle("boxes", "show", (value) => set({ boxes: value })),
      this.slider("score", "Least score", 0, 1, 0.01),
      this.found,
    );
    this.place = fieldset(
      "At a place",
      el(
        "div",
        {
          class: "row depths",
          role: "radiogroup",
          "aria-label": "Layers through which the sampling points are followed",
        },
        el("span", {}, "Layers deep"),
        ...[1, 2, 3].map((depth) => choice("depth", depth, [String(depth)], () => set({ depth })))),
      el("p", { class: "hint", id: "through" }),
      toggle("follow", "follow the flow: a click sends a particle along d_f", (value) =>
        set({ follow: value, ...(value ? {} : { from: null }) }),
      ),
      el("p", { class: "hint", id: "ended" }),
    );
    byId("controls").append(
      this.views,
      this.layers,
      this.groupRow,
      this.kernel,
      this.mask,
      this.place,
      this.drawing,
      this.detections,
    );
  }

  head({ theme, png, svg, link, help }) {
    const button = (words, label, click) =>
      el("button", { type: "button", "aria-label": label, title: label, click }, words);
    this.title = el("h1");
    this.about = el("p", { class: "about" });
    byId("head").append(
      el("div", { class: "titles" }, this.title, this.about),
      el("div", { class: "tools" },
        button("PNG", "Save the view as PNG (S)", png),
        button("SVG", "Save the view as SVG (Shift S)", svg),
        button("Link", "Copy a link to this view (L)", link),
        button("◐", "Dark or light (T)", theme),
        button("?", "Keys (?)", help)),
    );
  }

  slider(key, words, low, high, step) {
    const input = el("input", { type: "range", id: key, min: low, max: high, step });
    input.addEventListener("input", () => this.calls.set({ [key]: Number(input.value) }));
    const output = el("output", { for: key });
    this.controls[key] = { input, output };
    return el("p", { class: "slider" }, el("label", { for: key }, words), input, output);
  }

  // Another photo: its layers and detections.
  open({ photo, state }) {
    const { set } = this.calls;
    this.title.textContent = photo.title;
    this.about.textContent = [photo.detector, `${photo.size[1]} × ${photo.size[0]} px`].filter(Boolean).join(" · ");
    const rows = photo.layers.map((layer) => {
      const shown = photo.shortName(layer.name);
      const size = layer.kind === "queries" ? `${layer.ids.length} queries, ${layer.heads} heads` : sizeOf(layer);
      const words = [el("b", { title: layer.name }, shown), el("small", {}, size)];
      return choice("layer", layer.name, words, () => set({ layer: layer.name }));
    });
    this.layers.replaceChildren(
      el("legend", {}, "Layer"),
      el("div", { class: "list", tabindex: -1 }, ...rows),
      this.gaps,
    );
    this.detections.hidden = !photo.detections.length;
    this.found.replaceChildren(
      ...photo.detections.map(({ label, score }, index) => {
        const input = el("input", { type: "checkbox", change: () => set({ hide: toggled(this.state.hide, index) }) });
        return el(
          "li",
          {},
          el("label", { class: "toggle" }, input, el("span", {}, label || "object"), el("small", {}, score.toFixed(2))),
          photo.whys.has(index) ? whyButton(photo, index, () => this.state, set) : null,
          queryButton(photo, index, () => this.state, set),
        );
      }),
    );
    this.state = state;
    this.kernelOf = null;
  }

  // Everything as the state says.
  update(app, drawn) {
    const { state, field, photo } = app;
    this.state = state;
    const usable = {
      modulation: photo.layers.some((one) => one.modulation),
      queries: photo.layers.some((one) => one.kind === "queries"),
      ...(photo.layers.every((one) => one.kind === "queries") ? ONLY_QUERIES : {}),
      segments: photo.layers.some((one) => one.segments),
    };
    for (const input of this.views.querySelectorAll("input")) {
      input.checked = input.value === state.view;
      input.closest("label").hidden = usable[input.value] === false;
      input.disabled = viewFor(field, input.value) !== input.value;
    }
    this.views.lastChild.dataset.count = VIEWS.filter((view) => usable[view] !== false).length;
    for (const input of this.layers.querySelectorAll("input")) {
      input.checked = input.value === field.name;
      if (input.checked && this.scrolledTo !== input) reveal(input.closest(".list"), input.closest("label"));
      if (input.checked) this.scrolledTo = input;
    }
    this.gaps.textContent = [
      field.missing ? `${field.missing} components are no finite numbers: gaps` : "",
      field.cut ? `${field.cut} lie beyond ${FARTHEST} cells: cut there` : "",
    ].filter(Boolean).join("; ");
    this.groupRow.hidden = field.groups < 2;
    if (this.groupsOf !== field) {
      this.groupsOf = field;
      const words = (g) => field.group_names?.[g] ?? `${g}`;
      this.groups.replaceChildren(
        ...Array.from({ length: field.groups }, (_, g) => el("option", { value: g }, words(g))),
      );
      this.groupWords.textContent = field.group_names ? "Heads" : "Offset group";
    }
    this.groups.value = state.group;
    this.kernel.hidden = state.view !== "points" && state.view !== "modulation";
    if (!this.kernel.hidden) this.kernelGrid(app);
    this.mask.hidden = state.view !== "flow";
    if (!this.mask.hidden) this.threshold(app);
    const queries = field.kind === "queries";
    this.place.hidden = queries;
    for (const key of ["density", "length"]) this.controls[key].input.parentNode.hidden = queries;
    byId("true").closest("label").hidden = queries;
    for (const input of this.place.querySelectorAll("input[name=depth]"))
      input.checked = Number(input.value) === state.depth;
    for (const id of ["true", "mask", "boxes", "follow"]) byId(id).checked = state[id];
    const say = {
      density: `${state.density}`,
      length: `× ${brief(drawn.factor)}`,
      opacity: percent(state.opacity),
      light: percent(state.light),
      score: state.score.toFixed(2),
      div: digits(state.div, 3),
    };
    for (const [key, { input, output }] of Object.entries(this.controls)) {
      input.value = state[key];
      output.textContent = say[key];
      input.setAttribute("aria-valuetext", say[key]);
    }
    this.controls.length.input.disabled =
      state.true || state.view === "sampling" || state.view === "modulation" || state.view === "segments";
    [...this.found.children].forEach((row, index) => {
      row.hidden = photo.detections[index].score < state.score;
      const input = row.querySelector("input");
      input.checked = !state.hide.includes(index);
      input.disabled = !state.boxes;
      row.querySelector("button")?.setAttribute("aria-pressed", String(state.why === index));
    });
    byId("through").textContent =
      app.stack.length > 1
        ? `through ${app.stack
            .map((one) => one.name)
            .reverse()
            .join(" → ")}`
        : "";
  }

  // The slider's range is the layer's own; beside it what the mask covers.
  threshold({ field, state, photo }) {
    const { div } = field.viewpoint(state.group);
    const spread = cached(field, `spread${state.group}`, () => spreadOf(div, BINS));
    const { low, high } = spread;
    const { input } = this.controls.div;
    const step = Math.max((high - low) / 400, 1e-6);
    for (const [name, value] of [
      ["min", low - step],
      ["max", high + step],
      ["step", "any"],
    ])
      input.setAttribute(name, value);
    const { inside, all } = maskArea(field, state.group, state.div, photo.size);
    this.area.textContent = `${inside} of ${all} cells, ${all ? ((100 * inside) / all).toFixed(1) : 0} %`;
    if (!this.mask.hidden) histogram(this.histogram, spread, state.div);
  }

  // The kernel as a grid of its points, in each the mean of its offsets as an arrow.
  kernelGrid({ field, state }) {
    const own = state.view === "modulation" ? "mk" : "k";
    const key = `${field.name}/${state.group}/${own}`;
    if (this.kernelOf !== key) {
      this.kernelOf = key;
      const means = meanOffsets(field, state.group);
      const most = Math.max(...means.map(([y, x]) => Math.hypot(y, x)), 1e-9);
      const button = (k, words, ...more) => choice("k", k, words, () => this.calls.set({ [own]: k }), ...more);
      const grid = el(
        "div",
        { class: "kernel" },
        ...means.map((mean, k) => button(k, [], glyph(mean, most, k, field))),
      );
      grid.style.gridTemplateColumns = `repeat(${field.kernel[1]}, 34px)`;
      this.kernel.replaceChildren(el("legend", {}, "Kernel point"), grid, button(-1, [own === "k" ? "all" : "mean"]));
    }
    for (const input of this.kernel.querySelectorAll("input")) input.checked = Number(input.value) === state[own];
  }
}

// An arrow in a 34 px square: the mean offset, the longest 12 px.
function glyph([y, x], most, k, field) {
  const [dy, dx] = [(12 * y) / most, (12 * x) / most];
  const place = `row ${Math.floor(k / field.kernel[1])}, column ${k % field.kernel[1]}`;
  const words = `point ${k}, ${place}; mean offset ${digits(y)}, ${digits(x)} cells`;
  return el(
    "svg",
    { viewBox: "-17 -17 34 34", width: 34, height: 34, role: "img", "aria-label": words },
    el("circle", { r: 2.4 }),
    el("path", { d: `M0 0L${dx} ${dy}` }),
    el("circle", { class: "end", cx: dx, cy: dy, r: 2 }),
  );
}

function meanOffsets(field, group) {
  const n = field.h * field.w;
  return Array.from({ length: field.points }, (_, k) => [0, 1].map((axis) => {
    let [sum, known] = [0, 0];
    for (let i = 0; i < n; i++) {
      const value = field.offsetAt(group, k, axis, i);
      if (Number.isFinite(value)) [sum, known] = [sum + value, known + 1];
    }
    return known ? sum / known : 0;
  }));
}

// How often each divergence occurs, and which are below the threshold.
function histogram(canvas, { low, high, counts }, threshold) {
  const [width, height] = [320, 40];
  const most = Math.sqrt(Math.max(...counts, 1));
  [canvas.width, canvas.height] = [width * 2, height * 2];
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  counts.forEach((count, bin) => {
    const middle = low + ((bin + 0.5) / BINS) * (high - low);
    context.fillStyle = middle < threshold ? `rgb(${COLORS.converge})` : style.color;
    const tall = (Math.sqrt(count) / most) * height * 2;
    context.fillRect((bin * width * 2) / BINS + 1, height * 2 - tall, (width * 2) / BINS - 2, tall);
  });
}

function reveal(list, row) {
  if (row.offsetTop < list.scrollTop || row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = row.offsetTop - list.clientHeight / 2;
  }
}

const percent = (value) => `${Math.round(100 * value)} %`;
const toggled = (values, index) =>
  values.includes(index) ? values.filter((one) => one !== index) : [...values, index];
const pick = (object, keys) => Object.fromEntries(keys.map((key) => [key, object[key]]));
