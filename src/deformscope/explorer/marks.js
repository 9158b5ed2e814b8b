// What one place shows: its kernel's sampling points with their way from the regular grid, d_f, the circle of d_k, and,
// through more layers, the 81 and 729 places below; the boxes of the detections; the way of a particle.
import { COLORS } from "./colors.js";
import { follow, stackedPoints } from "./paths.js";
import { shapes } from "./pens.js";
import { chosenRow, drawQuery, drawReference } from "./queries.js";

const FADING = [
  { radius: 3.8, alpha: 1 },
  { radius: 2.5, alpha: 0.62 },
  { radius: 1.7, alpha: 0.38 },
];

// Draw the place [y, x] (photo px) in true size. `letter` is that of a pin, whose dots are round (A) or square (B).
export function drawPlace(pen, frame, app, place, { color, letter = "" }) {
  const { field, state } = app;
  if (field.kind === "queries") {
    drawReference(pen, frame, app, place);
    return;
  }
  if (field.samples) {
    drawQuery(pen, frame, field.samples, field.samples.nearest(place), state.group, { color, letter });
    return;
  }
  const theme = COLORS.dark; // on the photo itself, light marks with dark edges are seen everywhere
  const cell = field.cellAt(place);
  const centre = field.centre(cell);
  const view = field.viewpoint(state.group);
  const i = cell[0] * field.w + cell[1];
  const dot = letter === "B" ? shapes.square : shapes.circle;
  const [cx, cy] = frame.xy(centre);

  const circle = view.radius[i] > 0 ? shapes.circle(cx, cy, view.radius[i] * field.radiusScale * frame.scale) : "";
  pen.stroke(circle, { color: theme.halo, width: 3.4, alpha: 0.55 });
  pen.stroke(circle, { color, width: 1.6, dash: [5, 4] });

  const depths = stackedPoints(app.stack, cell, state.group);
  for (let depth = depths.length - 1; depth > 0; depth--) cloud(pen, frame, depths[depth], FADING[depth], color, dot);

  let [ways, hollow, full] = ["", "", ""];
  const { points } = depths[0];
  for (let k = 0; k < field.points; k++) {
    const start = frame.xy([
      field.toPhoto(field.regular(cell[0], k, 0), 0),
      field.toPhoto(field.regular(cell[1], k, 1), 1),
    ]);
    hollow += shapes.circle(...start, 2.2);
    const end = frame.xy([points[2 * k], points[2 * k + 1]]);
    if (!Number.isFinite(end[0] + end[1])) continue;
    ways += shapes.line(...start, ...end);
    full += dot(...end, FADING[0].radius);
  }
  pen.stroke(ways, { color: theme.halo, width: 3, alpha: 0.55 });
  pen.stroke(ways, { color, width: 1.2, alpha: 0.9 });
  pen.stroke(hollow, { color: theme.halo, width: 3, alpha: 0.6 });
  pen.stroke(hollow, { color, width: 1.2 });
  pen.stroke(full, { color: theme.halo, width: 2.2, alpha: 0.8 });
  pen.fill(full, { color });

  const end = frame.xy([centre[0] + view.dy[i] * field.perCell[0], centre[1] + view.dx[i] * field.perCell[1]]);
  const shift = shapes.arrow(cx, cy, ...end, 9);
  pen.stroke(shift, { color: theme.halo, width: 6, alpha: 0.8 });
  pen.stroke(shift, { color: COLORS.trend, width: 2.8 });
  pen.stroke(shapes.cross(cx, cy, 5), { color: theme.halo, width: 4, alpha: 0.8 });
  pen.stroke(shapes.cross(cx, cy, 5), { color, width: 1.6 });
  if (letter) pen.text(letter, cx + 9, cy - 9, { color: "#000000", size: 12, back: color, bold: true });
}

function cloud(pen, frame, { points, weights }, { radius, alpha }, color, dot) {
  // Four strengths of modulation are told apart by opacity; without modulation all are in the last.
  const paths = ["", "", "", ""];
  for (let n = 0; n < weights.length; n++) {
    const [x, y] = frame.xy([points[2 * n], points[2 * n + 1]]);
    if (Number.isFinite(x + y)) paths[Math.min(Math.max(Math.floor(weights[n] * 4), 0), 3)] += dot(x, y, radius);
  }
  paths.forEach((d, strength) => {
    pen.stroke(d, { color: COLORS.dark.halo, width: 1.2, alpha: 0.5 * alpha });
    pen.fill(d, { color, alpha: (alpha * (strength + 1)) / 4 });
  });
}

// The pinned places and the particle's way, of which `share` (0..1) is shown.
export function drawMarks(pen, frame, app, share = 1) {
  const { state, field } = app;
  if (field.kind === "queries") return;
  if (state.a) drawPlace(pen, frame, app, state.a, { color: COLORS.a, letter: "A" });
  if (state.b) drawPlace(pen, frame, app, state.b, { color: COLORS.b, letter: "B" });
  if (!state.from) return;
  const way = particleOf(field, state);
  const shown = way.path.slice(0, Math.max(1, Math.ceil(way.path.length * share))).map((place) => frame.xy(place));
  const d = shapes.polyline(shown);
  pen.stroke(d, { color: COLORS.dark.halo, width: 5.5, alpha: 0.7 });
  pen.stroke(d, { color: COLORS.particle, width: 2.6 });
  const start = shapes.circle(...shown[0], 3);
  pen.stroke(start, { color: COLORS.dark.halo, width: 4 });
  pen.stroke(start, { color: COLORS.particle, width: 1.8 });
  const last = shown[shown.length - 1];
  if (share >= 1 && way.end === "sink") {
    pen.stroke(shapes.circle(...last, 9), { color: COLORS.dark.halo, width: 5, alpha: 0.7 });
    pen.stroke(shapes.circle(...last, 9), { color: COLORS.particle, width: 2 });
  }
  pen.stroke(shapes.circle(...last, 4.5), { color: COLORS.dark.halo, width: 3 });
  pen.fill(shapes.circle(...last, 4.5), { color: COLORS.particle });
}

// The particle's way, kept with the field until it starts elsewhere.
export function particleOf(field, state) {
  const key = `${state.group}/${state.from}`;
  if (field.particle?.key !== key) field.particle = { key, ...follow(field, state.group, state.from) };
  return field.particle;
}

export function detectionsShown({ photo, state }) {
  const all = photo.detections.map((one, index) => ({ ...one, index }));
  if (photo.whys.has(state.why)) return [all[state.why]];
  return state.boxes ? all.filter((one) => one.score >= state.score && !state.hide.includes(one.index)) : [];
}

// Boxes, masks, classes and scores of the detections that are switched on.
export function drawDetections(pen, frame, app) {
  const chosen = app.field.kind === "queries" ? app.field.ids[chosenRow(app)] : null;
  for (const { box, label, score, index, query } of detectionsShown(app).reverse()) {
    const faint = chosen !== null && query !== chosen; // another query's
    const [x0, y0] = frame.xy([box[1], box[0]]);
    const [x1, y1] = frame.xy([box[3], box[2]]);
    const mask = app.photo.masks[index];
    if (mask && !faint) {
      const [left, top] = frame.xy([0, 0]);
      const [right, bottom] = frame.xy(app.photo.size);
      pen.image(maskPicture(mask), left, top, right - left, bottom - top, { alpha: 0.4 });
    }
    const d = shapes.box(x0, y0, x1, y1);
    pen.stroke(d, { color: COLORS.dark.halo, width: 4, alpha: faint ? 0.15 : 0.45 });
    pen.stroke(d, { color: COLORS.box, width: faint ? 1.2 : 1.8, alpha: faint ? 0.55 : 1 });
    if (faint) continue;
    const words = `${label} ${score.toFixed(2)}`.trim();
    pen.text(words, Math.max(x0, frame.left) + 6, Math.max(y0, frame.top) + 15, {
      color: "#00161b",
      size: 12,
      back: COLORS.box,
    });
  }
}

function maskPicture(mask) {
  if (mask.canvas) return mask.canvas;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [mask.w, mask.h];
  const context = canvas.getContext("2d");
  const image = context.createImageData(mask.w, mask.h);
  mask.inside.forEach((value, i) => image.data.set([0, 184, 217, value ? 255 : 0], 4 * i));
  context.putImageData(image, 0, 0);
  mask.canvas = canvas;
  return canvas;
}
