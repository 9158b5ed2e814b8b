// Deformable attention: the samples of queries, how one is chosen, drawn and told in numbers.
import { COLORS, scaleColor } from "./colors.js";
import { digits, el, percentile } from "./dom.js";
import { shapes } from "./pens.js";

const MEAN = "#76ff03";
const SMALLEST = 2.4; // px: radius of a point without weight
const LARGEST = 7.5;
const FULL = 0.995; // quantile of a layer's weights at which colours and sizes are full
const SIGNS = [shapes.circle, shapes.square, shapes.diamond, shapes.triangle]; // of the maps, in their order

// The queries of one layer; places are [y, x] in photo px.
export class Queries {
  constructor(record, moved, weights) {
    Object.assign(this, record);
    this.moved = moved; // [q head point 2]: px from the reference
    this.weights = weights; // [q head point], each head's together 1, or null
    this.groups = this.heads + 1; // group 0: all heads
    this.group_names = ["all heads", ...Array.from({ length: this.heads }, (_, head) => `head ${head}`)];
    const used = weights ?? [1 / this.points];
    this.full = percentile(used, FULL) || 1;
  }

  // The weight at which colours and sizes are full: of the query's total, or of one head's.
  most(group) {
    return group ? this.full : this.full / this.heads;
  }

  // The query with this number, or undefined where the page does not hold it.
  row(id) {
    const row = this.ids.indexOf(id);
    return row < 0 ? undefined : row;
  }

  nearest([y, x]) {
    const far = (row) => Math.hypot(this.reference[row][0] - y, this.reference[row][1] - x);
    return this.ids.reduce((best, _, row) => (far(row) < far(best) ? row : best), 0);
  }

  box(row) {
    if (!this.boxes) return null;
    const [[y, x], [height, width]] = [this.reference[row], this.boxes[row]];
    return [y - height / 2, x - width / 2, y + height / 2, x + width / 2];
  }

  // The samples of all heads (group 0) or one, lightest first, and their moments; weights sum to 1.
  samples(row, group) {
    const heads = group ? [group - 1] : Array.from({ length: this.heads }, (_, head) => head);
    const [y, x] = this.reference[row];
    const [points, means] = [[], []];
    for (const head of heads) {
      const mean = [0, 0];
      for (let p = 0; p < this.points; p++) {
        const i = (row * this.heads + head) * this.points + p;
        const weight = (this.weights ? this.weights[i] : 1 / this.points) / heads.length;
        const at = [y + this.moved[2 * i], x + this.moved[2 * i + 1]];
        if (!Number.isFinite(at[0] + at[1])) continue;
        points.push({ at, weight, level: this.level[p], head });
        mean[0] += at[0] * weight * heads.length;
        mean[1] += at[1] * weight * heads.length;
      }
      means.push(mean);
    }
    const total = points.reduce((sum, one) => sum + one.weight, 0) || 1;
    const over = (f) => points.reduce((sum, one) => sum + (one.weight / total) * f(one), 0);
    const mean = [0, 1].map((axis) => over(({ at }) => at[axis]));
    const spread = [0, 1].map((axis) => Math.sqrt(over(({ at }) => (at[axis] - mean[axis]) ** 2)));
    const box = this.box(row);
    const holds = ({ at }) => at.every((value, axis) => value >= box[axis] && value <= box[axis + 2]);
    points.sort((one, other) => one.weight - other.weight);
    return { points, means, mean, spread, inside: box ? over((one) => (holds(one) ? 1 : 0)) : NaN };
  }

  onPhoto([y, x], size) {
    return y >= 0 && y <= size[0] && x >= 0 && x <= size[1];
  }
}

// The detections whose query this page holds.
export function detectedQueries({ photo, field, state }) {
  return photo.detections
    .map((one, index) => ({ ...one, index }))
    .filter((one, index) => field.row(one.query) !== undefined && (one.score >= state.score || index === 0));
}

// The chosen query's row: the one of the state, else that of the best detection, else the one nearest to the middle.
export function chosenRow(app) {
  const { field, photo, state } = app;
  const [best] = detectedQueries(app);
  return (
    field.row(state.query) ?? (best ? field.row(best.query) : field.nearest(photo.size.map((length) => length / 2)))
  );
}

// The query at a place: of the detections around it the smallest box's, else the one whose reference is nearest.
export function rowAt(app, place) {
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const around = detectedQueries(app).filter(
    ({ box: [x0, y0, x1, y1] }) => y0 <= place[0] && place[0] <= y1 && x0 <= place[1] && place[1] <= x1,
  );
  around.sort((one, other) => area(one.box) - area(other.box));
  return around.length ? app.field.row(around[0].query) : app.field.nearest(place);
}

// The query of the detection before or after the chosen one's.
export function stepped(app, step) {
  const found = detectedQueries(app);
  if (!found.length) return app.state.query;
  const id = app.field.ids[chosenRow(app)];
  const at = found.findIndex((one) => one.query === id);
  return found[(at + step + found.length) % found.length].query;
}

export function drawQueries({ pen, frame, field, state, photo, alpha }) {
  const row = chosenRow({ field, state, photo });
  drawQuery(pen, frame, field, row, state.group, { alpha });
  return { kind: "scale", low: "weight 0", high: `${Number(field.most(state.group).toPrecision(2))}`, row };
}

// The reference of the query under the pointer.
export function drawReference(pen, frame, app, place) {
  const { field } = app;
  outline(pen, frame, field, rowAt(app, place), "#ffffff");
}

function outline(pen, frame, field, row, color) {
  const box = field.box(row);
  const [cx, cy] = frame.xy(field.reference[row]);
  const d = box ? shapes.box(...frame.xy([box[0], box[1]]), ...frame.xy([box[2], box[3]])) : "";
  pen.stroke(d, { color: COLORS.dark.halo, width: 3.6, alpha: 0.7 });
  pen.stroke(d, { color, width: 1.6, dash: [6, 4] });
  pen.stroke(shapes.cross(cx, cy, 6), { color: COLORS.dark.halo, width: 4.4 });
  pen.stroke(shapes.cross(cx, cy, 6), { color, width: 1.8 });
}

// A query's reference, its points coloured and sized by weight, the mean of each head, and their mean and spread.
export function drawQuery(pen, frame, field, row, group, { alpha = 1, color = COLORS.a, letter = "" } = {}) {
  const { points, means, mean, spread } = field.samples(row, group);
  const { halo } = COLORS.dark;
  outline(pen, frame, field, row, color);
  const start = frame.xy(field.reference[row]);
  const rays = means.length > 1 ? means.map((one) => shapes.line(...start, ...frame.xy(one))).join("") : "";
  pen.stroke(rays, { color: halo, width: 2.6, alpha: 0.55 * alpha });
  pen.stroke(rays, { color: "#ffffff", width: 1, alpha: 0.8 * alpha });
  for (const { at, weight, level } of points) {
    const share = Math.min(weight / field.most(group), 1);
    const d = SIGNS[level % SIGNS.length](...frame.xy(at), SMALLEST + (LARGEST - SMALLEST) * Math.sqrt(share));
    pen.stroke(d, { color: halo, width: 3, alpha: 0.75 * alpha });
    pen.fill(d, { color: `rgb(${scaleColor(share)})`, alpha });
    pen.stroke(d, { color: "#ffffff", width: 0.8, alpha: 0.9 * alpha });
  }
  const [mx, my] = frame.xy(mean);
  const d = shapes.ellipse(mx, my, spread[1] * frame.scale, spread[0] * frame.scale) + shapes.times(mx, my, 5);
  pen.stroke(d, { color: halo, width: 4, alpha: 0.75 * alpha });
  pen.stroke(d, { color: MEAN, width: 1.7, alpha });
  if (letter) pen.text(letter, start[0] + 9, start[1] - 9, { color: "#000000", size: 12, back: color, bold: true });
}

export function queriesCaption({ state, field, photo }) {
  const id = field.ids[chosenRow({ state, field, photo })];
  const found = photo.detections.find((one) => one.query === id);
  const what = found ? ` (${found.label || "object"} ${found.score.toFixed(2)})` : "";
  const heads = state.group ? `of head ${state.group - 1}` : "of all heads";
  const signs = ["●", "■", "◆", "▲"];
  const maps = field.maps.map((size, level) => `${signs[level % 4]} ${size.join("×")}`).join(" ");
  return `query ${id}${what}: points ${heads} by weight, maps ${maps} · ${field.name} · ${photo.title}`;
}

// The numbers of the query under the pointer, and of the chosen one.
export function queryNumbers(app, hover) {
  return { here: hover ? told(app, rowAt(app, hover)) : null, a: told(app, chosenRow(app)), b: null };
}

function told({ field, state, photo }, row) {
  const { mean, spread, inside, points } = field.samples(row, state.group);
  const moved = mean.map((value, axis) => value - field.reference[row][axis]);
  const pair = (values, count = 1, sign = false) => values.map((value) => digits(value, count, sign)).join(", ");
  const off = points.filter(({ at }) => !field.onPhoto(at, photo.size)).length;
  const id = field.ids[row];
  const texts = {
    query: String(id),
    reference: pair(field.reference[row]),
    box: field.boxes ? pair(field.boxes[row]) : "",
    mean: pair(mean),
    moved: pair(moved, 1, true),
    deviation: pair(spread),
    inside: Number.isFinite(inside) ? `${(100 * inside).toFixed(1)}` : "",
    outside: `${off} of ${points.length}`,
  };
  const words =
    `query ${id}: weighted mean ${pair(moved, 1)} pixels from its reference, spread ${pair(spread)} pixels` +
    (Number.isFinite(inside) ? `, ${Math.round(100 * inside)} percent of the weight in the reference box` : "");
  return { texts, words };
}

// Shows the samples of the query that made a detection, in the last decoder layer if another kind of layer is shown.
export function queryButton(photo, index, state, set) {
  const { label, score, query } = photo.detections[index];
  const decoder = photo.layers.filter((layer) => layer.kind === "queries" && layer.ids.includes(query));
  if (!decoder.length) return null;
  const click = () => {
    const shown = decoder.some((layer) => layer.name === state().layer);
    set({ query, ...(shown ? {} : { layer: decoder[decoder.length - 1].name }) });
  };
  const words = `Query of ${label || "object"} ${score.toFixed(2)}: where it looks`;
  return el("button", { type: "button", class: "quiet why query", title: words, "aria-label": words, click }, "query");
}
