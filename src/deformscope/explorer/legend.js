// What stands below the photo.
import { brief, el } from "./dom.js";
import { captionOf } from "./save.js";
import { whyOf } from "./whys.js";

// A line of words, how long a cell is drawn, and the colours' scale.
export function legendOf({ drawn, field, photo, state }, frame) {
  const words = el("span", { class: "words" }, captionOf({ state, field, photo }, drawn));
  const parts = [words];
  if (whyOf({ state, photo, field })) return parts;
  if (drawn.kind === "scale") parts.push(el("span", { class: "scale" }, drawn.low, el("i"), drawn.high));
  if (["flow", "points", "circles"].includes(state.view)) {
    const cell = field.radiusScale * drawn.factor * frame.scale;
    const count = [0.1, 0.2, 0.5, 1, 2, 5, 10].reduce((best, n) => (n * cell < 120 ? n : best), 0.1);
    const bar = el(
      "svg",
      { width: Math.min(count * cell, 160) + 2, height: 8 },
      el("path", { d: `M1 1V7M1 4H${count * cell}M${count * cell} 1V7` }),
    );
    parts.push(el("span", { class: "bar" }, bar, `${brief(count)} cell${count > 1 ? "s" : ""}`));
  }
  return parts;
}
