// The control of the divergence's threshold: its slider over a histogram, and what lies below.
import { COLORS } from "./colors.js";
import { el } from "./dom.js";
import { fieldset, toggle } from "./inputs.js";
import { cached, maskArea, spreadOf } from "./maps.js";

const BINS = 80; // of the histogram

export class Threshold {
  // `control`: the slider as { row, input, output }.
  constructor(control, set) {
    this.input = control.input;
    this.histogram = el("canvas", { class: "histogram", "aria-hidden": "true" });
    this.area = el("output", { id: "area", for: "div" });
    this.node = fieldset(
      "Divergence below a threshold",
      this.histogram,
      control.row,
      el("p", { class: "row" }, toggle("mask", "show", (value) => set({ mask: value })), this.area),
    );
  }

  // The slider's range is the layer's own; beside it what the mask covers.
  update({ field, state, photo }) {
    this.node.hidden = state.view !== "flow";
    if (this.node.hidden) return;
    const { div } = field.viewpoint(state.group);
    const spread = cached(field, `spread${state.group}`, () => spreadOf(div, BINS));
    const { low, high } = spread;
    const step = Math.max((high - low) / 400, 1e-6);
    for (const [name, value] of [
      ["min", low - step],
      ["max", high + step],
      ["step", "any"],
    ])
      this.input.setAttribute(name, value);
    const { inside, all } = maskArea(field, state.group, state.div, photo.size);
    this.area.textContent = `${inside} of ${all} cells, ${all ? ((100 * inside) / all).toFixed(1) : 0} %`;
    drawHistogram(this.histogram, spread, state.div);
  }

  // A hundredth of the slider's range.
  get step() {
    return (this.input.max - this.input.min) / 100;
  }
}

// How often each divergence occurs, and which are below the threshold.
function drawHistogram(canvas, { low, high, counts }, threshold) {
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
