// The list of a photo's layers.
import { brief, el } from "./dom.js";
import { choice, fieldset } from "./inputs.js";

const FARTHEST = 600; // cells, as Python cuts offsets
const [SHORT, LONG] = [20, 28]; // characters of a name's end that are always shown: at least, at most

export class LayerList {
  constructor(set) {
    this.set = set;
    this.gaps = el("p", { class: "hint" });
    this.node = fieldset("Layer");
  }

  // The layers of another photo.
  open(photo) {
    const rows = photo.layers.map((layer) => {
      const size = sizeOf(layer);
      const words = [cutName(layer.name, photo.shortName(layer.name)), el("small", {}, size)];
      const row = choice("layer", layer.name, words, () => this.set({ layer: layer.name }));
      row.querySelector("input").setAttribute("aria-label", `${layer.name}, ${size}`); // the name in one piece
      return row;
    });
    this.node.replaceChildren(
      el("legend", {}, "Layer"),
      el("div", { class: "list", tabindex: -1 }, ...rows),
      this.gaps,
    );
  }

  // Mark the layer that is shown, and say what its offsets lack.
  update(field) {
    for (const input of this.node.querySelectorAll("input")) {
      input.checked = input.value === field.name;
      if (input.checked && this.shown !== input) reveal(input.closest(".list"), input.closest("label"));
      if (input.checked) this.shown = input;
    }
    this.gaps.textContent = [
      field.missing ? `${field.missing} components are no finite numbers: gaps` : "",
      field.cut ? `${field.cut} lie beyond ${FARTHEST} cells: cut there` : "",
    ].filter(Boolean).join("; ");
  }
}

function sizeOf(layer) {
  if (layer.kind === "queries") return `${layer.ids.length} queries, ${layer.heads} heads`;
  const { cells, stride, size } = layer;
  const px = cells.reduction.map((value, axis) => brief(value * stride[axis]));
  return `${size.join("×")} · stride ${px[0] === px[1] ? px[0] : px.join("×")}`;
}

// A name that is cut before its end where it finds no room: names of attention differ in their last parts.
function cutName(name, shown) {
  const parts = shown.split(/(?<=\.)/);
  let end = "";
  while (parts.length && end.length < SHORT) end = parts.pop() + end;
  if (end.length > LONG) end = [...end].slice(-SHORT).join("");
  const start = shown.slice(0, shown.length - end.length);
  return el("b", { title: name }, ...[start, end].filter(Boolean).map((part) => el("span", {}, part)));
}

function reveal(list, row) {
  if (row.offsetTop < list.scrollTop || row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = row.offsetTop - list.clientHeight / 2;
  }
}
