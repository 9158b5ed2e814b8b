// An offset field and its viewpoints: the same formulas as deformscope.field and deformscope.viewpoint.
// Points are [y, x]; offsets are in cells of the operator's input. Cells are numbered row-major.

// Rounding of halves to even, as torch does it.
export function roundEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest === 0.5 ? low + (((low % 2) + 2) % 2) : Math.round(value);
}

// Central differences inside, one-sided at the border, zero along a single cell (Eq. 4 takes two of them).
function slope(values, h, w, axis, spacing) {
  const out = new Float64Array(h * w);
  const [size, step] = axis === 0 ? [h, w] : [w, 1];
  if (size < 2) return out;
  for (let i = 0; i < h * w; i++) {
    const place = axis === 0 ? Math.floor(i / w) : i % w;
    const before = place > 0 ? i - step : i;
    const after = place < size - 1 ? i + step : i;
    out[i] = (values[after] - values[before]) / ((after - before) / step * spacing);
  }
  return out;
}

// The modulation whose colour is brightest: 1, or the next of 2, 5, 10 … for layers that go beyond it.
function brightestOf(modulation) {
  const most = (modulation ?? []).reduce((high, value) => (value > high ? value : high), 0);
  if (most <= 1.001) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => most <= step);
}

export class Field {
  constructor(record, offset, modulation, segments) {
    Object.assign(this, record);
    [this.h, this.w] = record.size;
    this.points = record.kernel[0] * record.kernel[1];
    this.offset = offset; // [g k 2 h w]
    this.modulation = modulation; // [g k h w] or null
    this.brightest = brightestOf(modulation);
    this.segments = segments; // over the photo, or null
    this.perCell = [0, 1].map((axis) => record.cells.reduction[axis] / record.placement.scale[axis]);
    this.between = [0, 1].map((axis) => this.perCell[axis] * record.stride[axis]);
    this.spacing = (Math.abs(this.between[0]) + Math.abs(this.between[1])) / 2; // photo px between neighbouring cells
    this.viewpoints = new Map();
  }

  // (y, x) in input cells to photo px, along one axis.
  toPhoto(value, axis) {
    const { cells, placement } = this;
    return (value * cells.reduction[axis] + cells.origin[axis] - placement.shift[axis]) / placement.scale[axis];
  }

  // Network px, along one axis, to output cells.
  networkToOutput(value, axis) {
    const { cells, stride, padding, dilation, kernel } = this;
    const origin =
      cells.origin[axis] + cells.reduction[axis] * (-padding[axis] + (dilation[axis] * (kernel[axis] - 1)) / 2);
    return (value - origin) / (cells.reduction[axis] * stride[axis]);
  }

  // Photo px, along one axis, to output cells (not rounded).
  toOutput(value, axis) {
    const { placement } = this;
    return this.networkToOutput(value * placement.scale[axis] + placement.shift[axis], axis);
  }

  // The output cell nearest to a place of the photo.
  cellAt([y, x]) {
    const near = (value, axis, size) => Math.min(Math.max(roundEven(this.toOutput(value, axis)), 0), size - 1);
    return [near(y, 0, this.h), near(x, 1, this.w)];
  }

  // The regular place p0 · stride − padding + p_k · dilation of kernel point k (k = null: the middle), input cells.
  regular(cell, k, axis) {
    const rank =
      k === null ? (this.kernel[axis] - 1) / 2 : axis === 0 ? Math.floor(k / this.kernel[1]) : k % this.kernel[1];
    return cell * this.stride[axis] - this.padding[axis] + rank * this.dilation[axis];
  }

  // The middle of a cell's regular kernel, photo px.
  centre([y, x]) {
    return [this.toPhoto(this.regular(y, null, 0), 0), this.toPhoto(this.regular(x, null, 1), 1)];
  }

  // Δp of kernel point k in cell i along an axis, cells.
  offsetAt(group, k, axis, i) {
    return this.offset[((group * this.points + k) * 2 + axis) * this.h * this.w + i];
  }

  modulationAt(group, k, i) {
    return this.modulation ? this.modulation[(group * this.points + k) * this.h * this.w + i] : 1;
  }

  onPhoto([y, x], size) {
    return y >= 0 && y <= size[0] && x >= 0 && x <= size[1];
  }

  // d_f (Eq. 2), its divergence (Eq. 4), height, width and radius of d_k (Eq. 3, Figure 3) and the mean modulation.
  viewpoint(group) {
    if (!this.viewpoints.has(group)) this.viewpoints.set(group, this.computed(group));
    return this.viewpoints.get(group);
  }

  computed(group) {
    const { h, w, points } = this;
    const [rows, columns] = this.kernel;
    const maps = Array.from({ length: 7 }, () => new Float64Array(h * w));
    const [dy, dx, height, width, radius, together, modulation] = maps;
    for (let i = 0; i < h * w; i++) {
      for (let k = 0; k < points; k++) {
        dy[i] += this.offsetAt(group, k, 0, i) / points;
        dx[i] += this.offsetAt(group, k, 1, i) / points;
        modulation[i] += this.modulationAt(group, k, i) / points;
      }
      // d_f cancels in these differences, so that Δp serves as well as d_k.
      for (let c = 0; c < columns; c++) {
        height[i] += (this.offsetAt(group, (rows - 1) * columns + c, 0, i) - this.offsetAt(group, c, 0, i)) / columns;
      }
      for (let r = 0; r < rows; r++) {
        width[i] +=
          (this.offsetAt(group, r * columns + columns - 1, 1, i) - this.offsetAt(group, r * columns, 1, i)) / rows;
      }
      radius[i] = Math.sqrt(Math.max(height[i], 0) * Math.max(width[i], 0));
      // |r| where the kernel is drawn together, in one direction or both.
      together[i] = Math.min(height[i], width[i]) < 0 ? Math.sqrt(Math.abs(height[i] * width[i])) : 0;
    }
    const down = slope(dy, h, w, 0, this.stride[0]);
    const across = slope(dx, h, w, 1, this.stride[1]);
    const div = down.map((value, i) => value + across[i]);
    return { dy, dx, div, height, width, radius, together, modulation };
  }

  // Photo px per cell of radius: the geometric mean of both axes.
  get radiusScale() {
    return Math.sqrt(Math.abs(this.perCell[0] * this.perCell[1]));
  }
}
