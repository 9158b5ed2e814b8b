// Where a cell looks through several layers, and where a place ends that follows d_f.
import { roundEven } from "./field.js";

// The sampling points of output cell [y, x] of the last of `fields` (lowest first) through all of them, as
// deformscope.stack.stacked_points composes them: for each depth flat [y, x, …] in photo px and the weights.
// A point belongs to the lower layer's nearest output cell; beside the map it is NaN, with all below it.
export function stackedPoints(fields, cell, group) {
  const depths = [];
  let parents = [{ cell, weight: 1 }];
  for (let depth = fields.length - 1; depth >= 0; depth--) {
    const field = fields[depth];
    const below = depth > 0 ? fields[depth - 1] : null;
    const own = Math.min(group, field.groups - 1);
    const points = new Float64Array(2 * parents.length * field.points);
    const weights = new Float64Array(parents.length * field.points);
    const children = [];
    let n = 0;
    for (const parent of parents) {
      const at = parent.cell;
      const i = at ? at[0] * field.w + at[1] : 0;
      for (let k = 0; k < field.points; k++, n++) {
        const weight = parent.weight * field.modulationAt(own, k, i);
        const place = [0, 1].map((axis) =>
          at ? field.regular(at[axis], k, axis) + field.offsetAt(own, k, axis, i) : NaN,
        );
        points[2 * n] = field.toPhoto(place[0], 0);
        points[2 * n + 1] = field.toPhoto(place[1], 1);
        weights[n] = weight;
        if (below) children.push({ cell: cellBelow(field, below, place), weight });
      }
    }
    depths.push({ points, weights, field });
    parents = children;
  }
  return depths;
}

function cellBelow(field, below, place) {
  const cell = [0, 1].map((axis) => {
    const network = place[axis] * field.cells.reduction[axis] + field.cells.origin[axis];
    return roundEven(below.networkToOutput(network, axis));
  });
  const inside = cell[0] >= 0 && cell[0] < below.h && cell[1] >= 0 && cell[1] < below.w;
  return inside ? cell.map((value) => value + 0) : null; // NaN compares false; −0 becomes 0
}

// A map's value between its cells, bilinear; `at` is clamped to the map.
export function between(values, h, w, y, x) {
  const cy = Math.min(Math.max(y, 0), h - 1);
  const cx = Math.min(Math.max(x, 0), w - 1);
  const y0 = Math.min(Math.floor(cy), Math.max(h - 2, 0));
  const x0 = Math.min(Math.floor(cx), Math.max(w - 2, 0));
  const y1 = Math.min(y0 + 1, h - 1);
  const x1 = Math.min(x0 + 1, w - 1);
  const [fy, fx] = [cy - y0, cx - x0];
  const top = values[y0 * w + x0] * (1 - fx) + values[y0 * w + x1] * fx;
  const bottom = values[y1 * w + x0] * (1 - fx) + values[y1 * w + x1] * fx;
  return top * (1 - fy) + bottom * fy;
}

const PACE = 0.25; // of d_f a step
const LONGEST = 0.5; // output cells a step
const STILL = 0.01; // input cells: |d_f| at which a particle rests
const WINDOW = 60; // steps in which a particle that goes round gets nowhere
const MOST_STEPS = 4000;

// The way of a particle from a photo place along d_f, photo px [y, x], and how it ended: "sink" (d_f vanishes there or
// leads back), "edge" (off the map) or "on its way" (still going after so many steps).
export function follow(field, group, start) {
  const { dy, dx } = field.viewpoint(group);
  let y = field.toOutput(start[0], 0);
  let x = field.toOutput(start[1], 1);
  const cells = [[y, x]];
  let end = "on its way";
  for (let n = 0; n < MOST_STEPS; n++) {
    const fy = between(dy, field.h, field.w, y, x);
    const fx = between(dx, field.h, field.w, y, x);
    if (!Number.isFinite(fy + fx)) { end = "edge"; break; }
    if (Math.hypot(fy, fx) < STILL) { end = "sink"; break; }
    let [sy, sx] = [PACE * fy / field.stride[0], PACE * fx / field.stride[1]];
    const length = Math.hypot(sy, sx);
    if (length > LONGEST) [sy, sx] = [sy * LONGEST / length, sx * LONGEST / length];
    [y, x] = [y + sy, x + sx];
    cells.push([y, x]);
    if (y < -0.5 || x < -0.5 || y > field.h - 0.5 || x > field.w - 0.5) { end = "edge"; break; }
    const before = cells[cells.length - 1 - WINDOW];
    if (before && Math.hypot(y - before[0], x - before[1]) < 0.05) { end = "sink"; break; }
  }
  const toPhoto = (value, axis) => field.toPhoto(field.regular(value, null, axis), axis);
  return { path: cells.map(([cy, cx]) => [toPhoto(cy, 0), toPhoto(cx, 1)]), end };
}
