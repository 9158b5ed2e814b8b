// Maps of values over the photo: as pictures, as lines where they cross a level, and their areas.
import { COLORS } from "./colors.js";
import { percentile } from "./dom.js";
import { between } from "./paths.js";
import { shapes } from "./pens.js";

const RASTER_PX = 480;

// What `make` gives, kept with the field under a key.
export function cached(field, key, make) {
  if (!field.kept) field.kept = new Map();
  if (!field.kept.has(key)) field.kept.set(key, make());
  return field.kept.get(key);
}

// A map's values between its cells as a fine raster, one cell more on each side, since cells' centres begin at the
// photo's very corner.
export function raised(field, values) {
  const fine = Math.max(1, Math.floor(RASTER_PX / (Math.max(field.h, field.w) + 1)));
  const [width, height] = [(field.w + 1) * fine, (field.h + 1) * fine];
  const out = new Float32Array(width * height);
  for (let row = 0, i = 0; row < height; row++) {
    const y = (row + 0.5) / fine - 1;
    for (let column = 0; column < width; column++, i++) {
      out[i] = between(values, field.h, field.w, y, (column + 0.5) / fine - 1);
    }
  }
  return { width, height, values: out, canvas: null };
}

// The raster as a picture: `color` writes a value's four bytes at a place of the data.
export function painted(raster, color) {
  raster.canvas ??= Object.assign(document.createElement("canvas"), { width: raster.width, height: raster.height });
  const context = raster.canvas.getContext("2d");
  const image = context.createImageData(raster.width, raster.height);
  const { data } = image;
  for (let i = 0; i < raster.values.length; i++) color(raster.values[i], data, 4 * i);
  context.putImageData(image, 0, 0);
  return raster.canvas;
}

export function rasterOn({ pen, frame, field }, canvas, alpha) {
  const corner = (y, x) =>
    frame.xy([field.toPhoto(field.regular(y, null, 0), 0), field.toPhoto(field.regular(x, null, 1), 1)]);
  const [x0, y0] = corner(-1, -1);
  const [x1, y1] = corner(field.h, field.w);
  pen.image(canvas, x0, y0, x1 - x0, y1 - y0, { alpha });
}

// A veil where the divergence is below `threshold`, stronger where features converge more.
export function divergenceVeil(field, group, threshold) {
  const { div } = field.viewpoint(group);
  const raster = cached(field, `d${group}`, () =>
    Object.assign(raised(field, div), { full: Math.max(convergenceLimit(div), 1e-9) }),
  );
  if (raster.threshold === threshold) return raster.canvas;
  raster.threshold = threshold;
  const [r, g, b] = COLORS.converge;
  return painted(raster, (value, data, i) => {
    if (!(value < threshold)) return;
    data[i] = r;
    data[i + 1] = g;
    data[i + 2] = b;
    data[i + 3] = 255 * (0.1 + 0.5 * Math.min(Math.max(-value / raster.full, 0), 1));
  });
}

// The 98th percentile of −div where it is positive.
function convergenceLimit(div) {
  return percentile(div.filter((value) => value < 0).map((value) => -value), 0.98);
}

// How many cells on the photo there are, and in how many the divergence is below the threshold.
export function maskArea(field, group, threshold, size) {
  const { div } = field.viewpoint(group);
  const known = cached(field, "on photo", () => {
    const cells = Array.from({ length: field.h * field.w }, (_, i) => i);
    return cells.filter((i) => field.onPhoto(field.centre([Math.floor(i / field.w), i % field.w]), size));
  });
  let inside = 0;
  for (const i of known) if (div[i] < threshold) inside += 1;
  return { inside, all: known.length };
}

// The least and the greatest of the finite values, and their histogram.
export function spreadOf(values, bins) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low > high) [low, high] = [0, 0];
  const counts = new Array(bins).fill(0);
  for (const value of values) {
    if (Number.isFinite(value)) counts[Math.min(Math.floor(((value - low) / (high - low || 1)) * bins), bins - 1)] += 1;
  }
  return { low, high, counts };
}

// The line where a map crosses a level (marching squares, straight between cells), in screen px.
export function contour(field, values, level, frame) {
  const { h, w } = field;
  const value = (y, x) => values[Math.min(Math.max(y, 0), h - 1) * w + Math.min(Math.max(x, 0), w - 1)] - level;
  const on = (y, x) =>
    frame.xy([field.toPhoto(field.regular(y, null, 0), 0), field.toPhoto(field.regular(x, null, 1), 1)]);
  const parts = [];
  for (let y = -1; y < h; y++) {
    for (let x = -1; x < w; x++) {
      const around = [value(y, x), value(y, x + 1), value(y + 1, x + 1), value(y + 1, x)];
      const below = around.reduce((count, one) => count + (one < 0 ? 1 : 0), 0);
      if (below === 0 || below === 4 || !Number.isFinite(around[0] + around[1] + around[2] + around[3])) continue;
      const corners = [[y, x], [y, x + 1], [y + 1, x + 1], [y + 1, x]];
      const crossings = [];
      for (let side = 0; side < 4; side++) {
        const [a, b] = [around[side], around[(side + 1) % 4]];
        if (a < 0 === b < 0) continue;
        const [from, to] = [corners[side], corners[(side + 1) % 4]];
        const share = a / (a - b);
        crossings.push(on(from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share));
      }
      for (let i = 0; i + 1 < crossings.length; i += 2) parts.push(shapes.line(...crossings[i], ...crossings[i + 1]));
    }
  }
  return parts.join("");
}
