// Reading what Python packed into the page: JSON between script tags, arrays in it deflated and in base64.
import { byId } from "./dom.js";
import { Field } from "./field.js";
import { Queries } from "./queries.js";

const MISSING = -32768;
const NO_MODULATION = 255;

export function readIndex() {
  return JSON.parse(byId("index").textContent);
}

async function unpackBytes(text) {
  const packed = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Planes of int16, from differences along rows of width w: low bytes, then high bytes.
async function unpackSteps(text, w) {
  const bytes = await unpackBytes(text);
  const count = bytes.length / 2;
  const steps = new Int16Array(count);
  for (let i = 0, value = 0; i < count; i++) {
    if (i % w === 0) value = 0;
    value = (value + bytes[i] + 256 * bytes[count + i]) & 0xffff;
    steps[i] = value;
  }
  return steps;
}

// Regions over the photo: a number for each pixel, and each region's score.
async function readSegments({ size: [h, w], labels, scores }) {
  return { h, w, labels: await unpackSteps(labels, w), scores };
}

// What a detection's sampling points add, by layer: places in the flattened map, then shares of the strongest.
async function readWhy({ of, value, layers }) {
  const found = new Map();
  for (const [name, { largest, points }] of Object.entries(layers)) {
    const { buffer } = await unpackBytes(points);
    const count = buffer.byteLength / 5;
    const view = new DataView(buffer);
    const index = Uint32Array.from({ length: count }, (_, i) => view.getUint32(4 * i, true));
    found.set(name, { largest, index, shares: new Int8Array(buffer, 4 * count) });
  }
  return { of, value, layers: found };
}

// A layer's queries: displacements and weights of their samples.
async function readQueries(record) {
  const width = record.heads * record.points;
  const [moved, weights] = await Promise.all([
    unpackSteps(record.moved, 2 * width),
    record.weights ? unpackSteps(record.weights, width) : null,
  ]);
  return new Queries(
    record,
    Float64Array.from(moved, (q) => (q === MISSING ? NaN : q * record.step)),
    weights && Float64Array.from(weights, (q) => q / -(MISSING + 1)),
  );
}

async function readField(record) {
  if (record.kind === "queries") return readQueries(record);
  const [steps, modulation, segments] = await Promise.all([
    unpackSteps(record.offset, record.size[1]),
    record.modulation ? unpackBytes(record.modulation.data) : null,
    record.segments ? readSegments(record.segments) : null,
  ]);
  const offset = Float64Array.from(steps, (q) => (q === MISSING ? NaN : q * record.step));
  let scalars = null;
  if (modulation) {
    const { low, step } = record.modulation;
    scalars = Float64Array.from(modulation, (q) => (q === NO_MODULATION ? NaN : low + q * step));
  }
  const field = new Field(record, offset, scalars, segments);
  field.samples = record.samples ? await readQueries(record.samples) : null; // of an encoder's cells
  return field;
}

// One photo: its picture, its layers (decoded when first looked at) and its detections.
export class Photo {
  constructor(number) {
    const record = JSON.parse(byId(`photo-${number}`).textContent);
    this.number = number;
    this.title = record.title;
    this.detector = record.detector;
    this.size = record.size;
    this.layers = record.layers;
    this.start = record.start ?? ""; // the layer that is shown first
    this.detections = record.detections;
    this.uri = record.image;
    this.picture = new Image();
    this.masks = [];
    this.whys = new Map(); // by detection
    this.record = record;
    this.fields = new Map();
  }

  // A layer's name without what those of attention begin with, all alike: it would fill the list's rows.
  shortName(name) {
    const kinds = this.layers.filter((layer) => layer.kind === "queries" || layer.samples);
    if (kinds.length < 2 || kinds.length < this.layers.length) return name;
    const parts = kinds.map((layer) => layer.name.split("."));
    const alike = parts[0].findIndex((part, at) => parts.some((one) => one[at] !== part));
    return name.split(".").slice(Math.max(alike - 1, 0)).join(".");
  }

  async open() {
    this.picture.src = this.uri;
    await this.picture.decode();
    if (this.record.masks) await this.readMasks(this.record.masks);
    for (const why of this.record.whys ?? []) this.whys.set(why.detection, await readWhy(why));
    return this;
  }

  async readMasks({ size: [h, w], data }) {
    const bytes = await unpackBytes(data);
    for (let d = 0; d < this.detections.length; d++)
      this.masks.push({ h, w, inside: bytes.subarray(d * h * w, (d + 1) * h * w) });
  }

  // The field of a layer, as a promise the first time.
  async field(index) {
    if (!this.fields.has(index)) this.fields.set(index, await readField(this.layers[index]));
    return this.fields.get(index);
  }
}
