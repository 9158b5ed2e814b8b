// What each sampling point adds to a chosen detection (deformscope.explain), by layer, and how it is drawn.
import { COLORS } from "./colors.js";
import { el } from "./dom.js";
import { shapes } from "./pens.js";

const SHARE_STEPS = 127; // a point's attribution is a share of its layer's strongest
const LARGEST_DOT = 11; // px: radius of the strongest
const STRENGTHS = 6;

// The chosen detection, and its points in the layer that is shown; null where no detection is chosen.
export function whyOf({ state, photo, field }) {
  const why = photo.whys.get(state.why);
  return why ? { ...why, detection: photo.detections[state.why], layer: why.layers.get(field.name) ?? null } : null;
}

// Dots at the sampling points, red where they add and blue where they take away, areas by magnitude.
export function drawWhy(pen, frame, app) {
  const layer = whyOf(app)?.layer;
  if (!layer) return;
  const { field } = app;
  const n = field.h * field.w;
  // The weakest come first; dots of a strength are drawn together.
  const paths = Array.from({ length: 2 * STRENGTHS }, () => "");
  for (const [at, index] of layer.index.entries()) {
    const [cell, plane] = [index % n, Math.floor(index / n)];
    const [y, x] = [Math.floor(cell / field.w), cell % field.w];
    const [group, k] = [Math.floor(plane / field.points), plane % field.points];
    const place = [
      field.toPhoto(field.regular(y, k, 0) + field.offsetAt(group, k, 0, cell), 0),
      field.toPhoto(field.regular(x, k, 1) + field.offsetAt(group, k, 1, cell), 1),
    ];
    if (!Number.isFinite(place[0] + place[1])) continue;
    const share = Math.abs(layer.shares[at]) / SHARE_STEPS;
    const level = Math.min(STRENGTHS - 1, Math.floor(share * STRENGTHS));
    paths[2 * level + (layer.shares[at] > 0 ? 1 : 0)] += shapes.circle(
      ...frame.xy(place),
      Math.max(1.2, LARGEST_DOT * Math.sqrt(share)),
    );
  }
  paths.forEach((d, i) => {
    pen.stroke(d, { color: COLORS.dark.halo, width: 1.4, alpha: 0.7 });
    pen.fill(d, { color: i % 2 ? COLORS.adds : COLORS.takes, alpha: 0.92 });
  });
}

export function whyCaption({ detection, layer }) {
  const what = `${detection.label || "object"} ${detection.score.toFixed(2)}`;
  if (!layer) return `${what} does not depend on this layer`;
  return `what sampling points add to ${what}: red adds, blue takes away`;
}

// Shows and hides what a detection's sampling points add, in the last layer on which it depends if not in this one.
export function whyButton(photo, index, state, set) {
  const names = [...photo.whys.get(index).layers.keys()];
  const click = () => {
    if (state().why === index) set({ why: -1 });
    else set({ why: index, ...(names.includes(state().layer) ? {} : { layer: names[names.length - 1] }) });
  };
  const { label, score } = photo.detections[index];
  const words = `Why ${label || "object"} ${score.toFixed(2)}: what each sampling point adds`;
  return el("button", { type: "button", class: "quiet why", title: words, "aria-label": words, click }, "why");
}
