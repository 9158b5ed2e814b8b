// Making elements. Text only ever goes in as text, so that names from files and models stay harmless.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle", "rect", "line", "g"]);

// An element with attributes (functions become listeners) and children (strings become text).
export function el(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "checked" || name === "disabled" || name === "hidden") node[name] = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

// For screen readers; shown to all for a moment when `seen`.
let sayTimer = 0;
export function say(words, seen = false) {
  const node = byId("said");
  node.textContent = words;
  node.classList.toggle("unseen", !seen);
  clearTimeout(sayTimer);
  if (seen) sayTimer = setTimeout(() => node.classList.add("unseen"), 2600);
}

// A number with a fixed count of digits and a true minus; "–" where there is none.
export function digits(value, count = 2, sign = false) {
  if (!Number.isFinite(value)) return "–";
  const text = Math.abs(value).toFixed(count);
  const zero = Number(text) === 0;
  return (value < 0 && !zero ? "−" : sign && !zero ? "+" : "") + text;
}

// A short number: 2, 0.5, 1.25.
export function brief(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "–";
}

// The nearest of 1, 2, 5 times a power of ten: a factor that can be read.
export function nice(value) {
  if (!Number.isFinite(value) || value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const far = (m) => Math.abs(Math.log(m * power / value));
  return [1, 2, 5, 10].reduce((best, m) => (far(m) < far(best) ? m : best)) * power;
}

export function percentile(values, share) {
  const known = Array.from(values).filter(Number.isFinite).sort((a, b) => a - b);
  if (!known.length) return 0;
  const place = (known.length - 1) * share;
  const low = Math.floor(place);
  return known[low] + (known[Math.min(low + 1, known.length - 1)] - known[low]) * (place - low);
}

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
