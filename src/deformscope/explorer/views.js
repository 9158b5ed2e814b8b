// The views of one layer over the photo: d_f with divergence, circles, kernel points, sampling points, modulation,
// segments. Every view draws with a pen through a frame, which maps photo px to screen px.
import { COLORS, REGIONS, scaleColor } from "./colors.js";
import { brief, clamp, nice, percentile } from "./dom.js";
import { cached, contour, divergenceVeil, painted, raised, rasterOn } from "./maps.js";
import { shapes } from "./pens.js";
import { drawQueries } from "./queries.js";

const TRUE_HEAD = 5;
const LEVELS = 24; // of colour

// Every n-th cell is drawn when `density` of them go along the photo's longer side.
function everyOf(field, size, density) {
  return Math.max(1, Math.round(Math.max(...size) / (field.spacing * density)));
}

// The drawn cells: at most `density` along the photo's longer side, finer as one zooms in; on the photo only.
function* cellsShown({ field, photo: { size }, frame }, density) {
  const every = everyOf(field, size, density * frame.zoom);
  const first = (length) => Math.floor(((length - 1) % every) / 2);
  for (let y = first(field.h); y < field.h; y += every) {
    for (let x = first(field.w); x < field.w; x += every) {
      const centre = field.centre([y, x]);
      if (field.onPhoto(centre, size)) yield { y, x, i: y * field.w + x, centre };
    }
  }
}

// A readable factor that makes the 95th percentile of `lengths` (cells) about `target` times the arrows' spacing.
function readable(lengths, field, size, target) {
  const long = percentile(lengths, 0.95) * field.radiusScale;
  return long > 1e-6 ? nice((target * field.spacing * everyOf(field, size, 36)) / long) : 1;
}

// How many times too long arrows and circles are drawn in a view.
export function factorOf(field, state, size) {
  if (state.true || state.view === "sampling") return 1;
  const view = field.viewpoint(state.group);
  if (!view.factors) view.factors = {};
  const kind = state.view === "circles" ? "circles" : state.view === "points" ? "points" : "flow";
  if (!(kind in view.factors)) {
    const lengths =
      kind === "circles" ? view.radius.map((r, i) => Math.max(r, view.together[i]))
      : kind === "flow" ? view.dy.map((dy, i) => Math.hypot(dy, view.dx[i]))
      : view.dy.map((_, i) => Math.hypot(field.offsetAt(state.group, 0, 0, i), field.offsetAt(state.group, 0, 1, i)));
    view.factors[kind] = readable(lengths, field, size, kind === "circles" ? 0.8 : 1.6);
  }
  return view.factors[kind] * 2 ** state.length;
}

// The view in which a layer is shown, if another was asked for that it does not have.
export function viewFor(field, view) {
  if (field.kind === "queries") return "queries";
  const lacks = {
    modulation: !field.modulation,
    segments: !field.segments,
    queries: true,
    points: field.samples, // kernels that stand for an encoder's samples
    sampling: field.samples,
  };
  return lacks[view] ? "flow" : view;
}

// Draw the chosen view; returns what the legend says of it.
export function drawView(pen, frame, app) {
  const { state, field, photo } = app;
  if (field.kind === "queries")
    return { factor: 1, ...drawQueries({ pen, frame, field, state, photo, alpha: state.opacity }) };
  const theme = COLORS[frame.theme];
  const factor = factorOf(field, state, photo.size);
  const context = {
    pen,
    frame,
    field,
    state,
    photo,
    theme,
    factor,
    view: field.viewpoint(state.group),
    alpha: state.opacity,
  };
  context.bold = boldness(field, frame, photo.size, state.density);
  const draw = { flow, circles, points, sampling, modulation, segments }[state.view] || flow;
  return { factor, ...draw(context) };
}

function arrows({ pen, theme, alpha, bold }, d) {
  pen.stroke(d, { color: theme.halo, width: 2.5 * bold, alpha: 0.55 * alpha });
  pen.stroke(d, { color: theme.ink, width: bold, alpha });
}

// Strokes are finer where marks stand closer: px between them on the screen tell.
function boldness(field, frame, size, density) {
  return clamp((field.spacing * everyOf(field, size, density * frame.zoom) * frame.scale) / 24, 0.75, 1.5);
}

function flow(c) {
  const { pen, frame, field, state, view, factor } = c;
  if (state.mask) {
    rasterOn(c, divergenceVeil(field, state.group, state.div), c.alpha);
    const [r, g, b] = COLORS.converge;
    const line = contour(field, view.div, state.div, frame);
    pen.stroke(line, { color: c.theme.halo, width: 2.6, alpha: 0.5 * c.alpha });
    pen.stroke(line, { color: `rgb(${r},${g},${b})`, width: 1.4, alpha: c.alpha });
  }
  let d = "";
  for (const { i, centre } of cellsShown(c, state.density)) {
    d += arrow(frame, centre, [view.dy[i] * field.perCell[0] * factor, view.dx[i] * field.perCell[1] * factor], 4.2);
  }
  arrows(c, d);
  return { kind: "flow" };
}

function circles(c) {
  const { pen, frame, field, state, view, factor } = c;
  const largest = (values) => values.reduce((most, value) => (value > most ? value : most), 0);
  const [spread, together] = [largest(view.radius), largest(view.together)];
  const paths = Array.from({ length: LEVELS }, () => "");
  let drawnTogether = "";
  for (const { i, centre } of cellsShown(c, state.density)) {
    const r = view.radius[i] || view.together[i];
    if (!(r > 0)) continue;
    const circle = shapes.circle(...frame.xy(centre), r * field.radiusScale * factor * frame.scale);
    if (view.together[i] > 0) drawnTogether += circle;
    else paths[Math.min(LEVELS - 1, Math.floor((r / spread) * LEVELS))] += circle;
  }
  const stroke = (d, color) => {
    pen.stroke(d, { color: c.theme.halo, width: 2.4 * c.bold, alpha: 0.4 * c.alpha });
    pen.stroke(d, { color, width: 1.2 * c.bold, alpha: c.alpha });
  };
  stroke(drawnTogether, COLORS.together);
  paths.forEach((d, level) => stroke(d, `rgb(${scaleColor((level + 0.5) / LEVELS)})`));
  return { kind: "scale", low: "0", high: `r = ${brief(spread)} cells`, together };
}

function points(c) {
  const { frame, field, state, factor } = c;
  // All points at once go by whole kernels, whose regular places then lie side by side.
  const chosen = state.k < 0 ? [...Array(field.points).keys()] : [state.k];
  const sum = [0, 0];
  let [d, n] = ["", 0];
  for (const { y, x, i } of cellsShown(c, state.density / (chosen.length > 1 ? Math.max(...field.kernel) : 1))) {
    for (const k of chosen) {
      const start = [field.toPhoto(field.regular(y, k, 0), 0), field.toPhoto(field.regular(x, k, 1), 1)];
      const vector = [0, 1].map((axis) => field.offsetAt(state.group, k, axis, i) * field.perCell[axis]);
      d += arrow(frame, start, vector.map((value) => value * factor), 3.6);
      if (Number.isFinite(vector[0] + vector[1])) [sum[0], sum[1], n] = [sum[0] + vector[0], sum[1] + vector[1], n + 1];
    }
  }
  arrows(chosen.length > 1 ? { ...c, bold: 0.75 * c.bold } : c, d);
  return { kind: "points", trend: chosen.length === 1 && n ? trend(c, sum.map((value) => value / n)) : 0 };
}

// Figure 1's thick arrow: the mean of one kernel point's offsets over the drawn cells, in the photo's middle. It is an
// eighth of the photo long at least; returns how many times its length that is.
function trend({ pen, frame, photo, factor, alpha }, mean) {
  const middle = photo.size.map((length) => length / 2);
  const long = Math.hypot(...mean);
  const times = Math.max(factor, long > 1e-9 ? nice((0.125 * Math.min(...photo.size)) / long) : 1);
  const d = arrow(frame, middle.map((value, axis) => value - (mean[axis] * times) / 2), mean.map((v) => v * times), 14);
  pen.stroke(d, { color: "#000000", width: 7, alpha: 0.75 * alpha });
  pen.stroke(d, { color: COLORS.trend, width: 4, alpha });
  return times;
}

function sampling(c) {
  const { pen, frame, field, state } = c;
  const paths = Array.from({ length: field.modulation ? LEVELS : 1 }, () => "");
  const radius = Math.max(1.1, Math.min(2.6, field.between[0] * frame.scale * 0.06));
  for (const { y, x, i } of cellsShown(c, state.density)) {
    for (let k = 0; k < field.points; k++) {
      const at = [
        field.toPhoto(field.regular(y, k, 0) + field.offsetAt(state.group, k, 0, i), 0),
        field.toPhoto(field.regular(x, k, 1) + field.offsetAt(state.group, k, 1, i), 1),
      ];
      if (!Number.isFinite(at[0] + at[1])) continue;
      const share = field.modulationAt(state.group, k, i) / field.brightest;
      const level = field.modulation ? Math.floor(share * LEVELS) : 0;
      paths[Math.min(Math.max(level, 0), paths.length - 1)] += shapes.circle(...frame.xy(at), radius);
    }
  }
  paths.forEach((d, level) => {
    pen.stroke(d, { color: c.theme.halo, width: 1.6, alpha: 0.5 * c.alpha });
    pen.fill(d, {
      color: field.modulation ? `rgb(${scaleColor((level + 0.5) / LEVELS)})` : c.theme.ink,
      alpha: c.alpha,
    });
  });
  return field.modulation ? { kind: "scale", low: "Δm = 0", high: String(field.brightest) } : { kind: "sampling" };
}

function modulation(c) {
  const { field, state } = c;
  if (!field.modulation) return { kind: "none" };
  const n = field.h * field.w;
  const start = (state.group * field.points + state.mk) * n;
  const values = state.mk < 0 ? c.view.modulation : field.modulation.subarray(start, start + n);
  const picture = cached(field, `m${state.group}/${state.mk}`, () =>
    painted(raised(field, values), (value, data, i) => {
      if (Number.isFinite(value)) data.set([...scaleColor(value / field.brightest), 205], i);
    }),
  );
  rasterOn(c, picture, c.alpha);
  return { kind: "scale", low: "Δm = 0", high: String(field.brightest) };
}

function segments({ pen, frame, field, alpha }) {
  const regions = field.segments;
  if (!regions) return { kind: "none" };
  const picture = cached(field, "segments", () => segmentPicture(regions));
  pen.image(picture, frame.left, frame.top, frame.width, frame.height, { alpha });
  return { kind: "segments", count: regions.scores.length };
}

// Regions in their colours, fuller along their outlines.
function segmentPicture({ h, w, labels }) {
  const beside = (i) => [i % w ? i - 1 : i, i % w < w - 1 ? i + 1 : i, i >= w ? i - w : i, i + w < h * w ? i + w : i];
  return painted({ width: w, height: h, values: Array.from(labels.keys()), canvas: null }, (i, data, at) => {
    if (!labels[i]) return;
    const hex = REGIONS[(labels[i] - 1) % REGIONS.length];
    const inner = beside(i).every((one) => labels[one] === labels[i]);
    data.set([...[1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16)), inner ? 120 : 255], at);
  });
}

function arrow(frame, [y, x], [dy, dx], head) {
  return shapes.arrow(...frame.xy([y, x]), ...frame.xy([y + dy, x + dx]), Math.max(head, TRUE_HEAD));
}
