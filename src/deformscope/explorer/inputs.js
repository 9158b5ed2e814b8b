// The panel's native inputs with their labels, so that keyboard and screen reader work as everywhere.
import { el } from "./dom.js";

// One of the radio buttons called `name`; `more` follows its words.
export function choice(name, value, words, set, ...more) {
  const input = el("input", { type: "radio", name, value, change: () => set(value) });
  return el("label", { class: `choice ${name}` }, input, el("span", {}, ...words), ...more);
}

export function toggle(id, words, set) {
  const input = el("input", { type: "checkbox", id, change: () => set(input.checked) });
  return el("label", { class: "toggle", for: id }, input, el("span", {}, words));
}

// A slider as { row, input, output }.
export function slider(key, words, low, high, step, set) {
  const input = el("input", { type: "range", id: key, min: low, max: high, step });
  input.addEventListener("input", () => set(Number(input.value)));
  const output = el("output", { for: key });
  return { row: el("p", { class: "slider" }, el("label", { for: key }, words), input, output), input, output };
}

export function fieldset(legend, ...children) {
  return el("fieldset", {}, el("legend", {}, legend), ...children);
}
