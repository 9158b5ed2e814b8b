// What is looked at, and how: one plain object, kept in the URL's hash so that a view can be linked.
import { clamp } from "./dom.js";

export const VIEWS = ["flow", "circles", "points", "sampling", "modulation", "segments", "queries"];

const number = (low, high) => ({
  read: (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? clamp(Number(text), low, high) : undefined),
  write: (value) => String(Number(value.toPrecision(7))),
});
const whole = (low, high) => ({
  read: (text) => (/^\d{1,6}$/.test(text) ? clamp(Number(text), low, high) : undefined),
  write: String,
});
const word = (...words) => ({ read: (text) => (words.includes(text) ? text : undefined), write: String });
const flag = {
  read: (text) => (text === "1" ? true : text === "0" ? false : undefined),
  write: (value) => (value ? "1" : "0"),
};
const place = {
  read: (text) => {
    const values = text.split(",").map(Number);
    return values.length === 2 && text.length < 60 && values.every(Number.isFinite)
      ? [values[1], values[0]]
      : undefined;
  },
  write: ([y, x]) => [x, y].map((value) => Number(value.toFixed(2))).join(","), // x,y: as `--at` takes them
};
const list = {
  read: (text) => (/^\d{1,4}(\.\d{1,4}){0,99}$/.test(text) ? text.split(".").map(Number) : undefined),
  write: (values) => values.join("."),
};
const name = { read: (text) => text, write: String };

// Key in the hash, kind, value unless told otherwise.
const KEYS = {
  photo: [whole(0, 99999), 0],
  layer: [name, ""],
  view: [word(...VIEWS), "flow"],
  k: [number(-1, 99999), 0], // kernel point whose offsets are shown; −1: all
  mk: [number(-1, 99999), -1], // kernel point whose modulation is shown; −1: the mean
  group: [whole(0, 99999), 0],
  depth: [whole(1, 3), 1],
  div: [number(-1e6, 1e6), 0],
  mask: [flag, true],
  density: [whole(6, 120), 36],
  length: [number(-4, 4), 0], // powers of two on the readable factor
  true: [flag, false],
  opacity: [number(0, 1), 1],
  light: [number(0, 1), 0.75],
  boxes: [flag, true],
  score: [number(0, 1), 0.4],
  hide: [list, []],
  query: [number(-1, 99999), -1], // query whose samples are shown; −1: the best detection's
  why: [number(-1, 99999), -1], // detection whose sampling points are shown; −1: none
  zoom: [number(1, 40), 1],
  centre: [place, null],
  a: [place, null],
  b: [place, null],
  from: [place, null],
  follow: [flag, false],
  theme: [word("auto", "dark", "light"), "auto"],
};

export function defaults() {
  return Object.fromEntries(Object.entries(KEYS).map(([key, [, value]]) => [key, value]));
}

// The state that a hash asks for; what it says wrongly counts as not said.
export function fromHash(hash) {
  const state = defaults();
  const told = new URLSearchParams(hash.replace(/^#/, ""));
  for (const [key, [kind]] of Object.entries(KEYS)) {
    const value = told.has(key) ? kind.read(told.get(key)) : undefined;
    if (value !== undefined) state[key] = value;
  }
  return state;
}

// The hash of a state: only what differs from the defaults.
export function toHash(state) {
  const told = new URLSearchParams();
  for (const [key, [kind, usual]] of Object.entries(KEYS)) {
    const value = state[key];
    if (value === null || value === usual || (Array.isArray(usual) && !value.length)) continue;
    told.set(key, kind.write(value));
  }
  return told.toString().replaceAll("%2C", ",");
}
