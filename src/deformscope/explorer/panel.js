// The controls beside the photo.
import { brief, byId, digits, el } from "./dom.js";
import { choice, fieldset, slider, toggle } from "./inputs.js";
import { KernelGrid } from "./kernel.js";
import { LayerList } from "./layerlist.js";
import { queryButton } from "./queries.js";
import { VIEWS, defaults } from "./state.js";
import { Threshold } from "./threshold.js";
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

export class Panel {
  // `calls`: set(patch of the state), and the header's actions by name.
  constructor(calls) {
    this.calls = calls;
    const { set } = calls;
    this.head(calls);
    this.views = fieldset("View", el("div", { class: "chips" }, ...VIEWS.map((view) =>
      choice("view", view, [el("b", {}, NAMES[view][0]), el("small", {}, NAMES[view][1])], () => set({ view })))));
    this.layers = new LayerList(set);
    this.groups = el("select", { id: "group", change: () => set({ group: Number(this.groups.value) }) });
    this.groupWords = el("label", { for: "group" }, "Offset group");
    this.groupRow = el("p", { class: "row" }, this.groupWords, this.groups);
    this.kernel = new KernelGrid(set);
    this.controls = {};
    this.drawing = fieldset(
      "Drawing",
      this.control("density", "Density", 6, 120, 1).row,
      this.control("length", "Length", -4, 4, 0.25).row,
      this.control("opacity", "Opacity", 0, 1, 0.05).row,
      this.control("light", "Photo", 0, 1, 0.05).row,
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
    this.threshold = new Threshold(this.control("div", "Threshold", -1, 1, 0.001), set);
    this.found = el("ul", { class: "found" });
    this.detections = fieldset(
      "Detections",
      toggle("boxes", "show", (value) => set({ boxes: value })),
      this.control("score", "Least score", 0, 1, 0.01).row,
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
      this.layers.node,
      this.groupRow,
      this.kernel.node,
      this.threshold.node,
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

  // A slider of the state's `key`, as { row, input, output }.
  control(key, words, low, high, step) {
    this.controls[key] = slider(key, words, low, high, step, (value) => this.calls.set({ [key]: value }));
    return this.controls[key];
  }

  // Another photo: its layers and detections.
  open({ photo, state }) {
    const { set } = this.calls;
    this.title.textContent = photo.title;
    this.about.textContent = [photo.detector, `${photo.size[1]} × ${photo.size[0]} px`].filter(Boolean).join(" · ");
    this.layers.open(photo);
    this.kernel.forget();
    this.detections.hidden = !photo.detections.length;
    this.found.replaceChildren(
      ...photo.detections.map(({ label, score }, index) => {
        const input = el("input", { type: "checkbox", change: () => set({ hide: toggled(this.state.hide, index) }) });
        const words = el("span", { title: label }, label || "object");
        return el(
          "li",
          {},
          el("label", { class: "toggle" }, input, words, el("small", {}, score.toFixed(2))),
          photo.whys.has(index) ? whyButton(photo, index, () => this.state, set) : null,
          queryButton(photo, index, () => this.state, set),
        );
      }),
    );
    this.state = state;
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
    this.layers.update(field);
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
    this.kernel.update(app);
    this.threshold.update(app);
    const queries = field.kind === "queries";
    this.place.hidden = queries;
    for (const key of ["density", "length"]) this.controls[key].row.hidden = queries;
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
}

const percent = (value) => `${Math.round(100 * value)} %`;
const toggled = (values, index) =>
  values.includes(index) ? values.filter((one) => one !== index) : [...values, index];
const pick = (object, keys) => Object.fromEntries(keys.map((key) => [key, object[key]]));
