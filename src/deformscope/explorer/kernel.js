// The choice of a kernel point: the kernel as a grid of its points, in each the mean of its offsets as an arrow.
import { digits, el } from "./dom.js";
import { choice, fieldset } from "./inputs.js";

export class KernelGrid {
  constructor(set) {
    this.set = set;
    this.node = fieldset("Kernel point");
    this.forget();
  }

  // Another photo, whose layers may have the same names.
  forget() {
    this.shown = null;
  }

  update({ field, state }) {
    this.node.hidden = state.view !== "points" && state.view !== "modulation";
    if (this.node.hidden) return;
    const own = state.view === "modulation" ? "mk" : "k";
    const key = `${field.name}/${state.group}/${own}`;
    if (this.shown !== key) {
      this.shown = key;
      const means = meanOffsets(field, state.group);
      const most = Math.max(...means.map(([y, x]) => Math.hypot(y, x)), 1e-9);
      const button = (k, words, ...more) => choice("k", k, words, () => this.set({ [own]: k }), ...more);
      const points = means.map((mean, k) => button(k, [], glyph(mean, most, k, field)));
      const grid = el("div", { class: "kernel" }, ...points);
      grid.style.gridTemplateColumns = `repeat(${field.kernel[1]}, 34px)`;
      this.node.replaceChildren(el("legend", {}, "Kernel point"), grid, button(-1, [own === "k" ? "all" : "mean"]));
    }
    for (const input of this.node.querySelectorAll("input")) input.checked = Number(input.value) === state[own];
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
