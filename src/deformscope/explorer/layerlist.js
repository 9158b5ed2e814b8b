// The list of a photo's layers.
import { brief, el } from "./dom.js";
import { choice, fieldset } from "./inputs.js";

const FARTHEST = 600; // cells, as Python cuts offsets

export class LayerList {
  constructor(set) {
    this.set = set;
    this.gaps = el("p", { class: "hint" });
    this.node = fieldset("Layer");
  }

  // The layers of another photo.
  open(photo) {
    const rows = photo.layers.map((layer) => {
      const words = [el("b", { title: layer.name }, photo.shortName(layer.name)), el("small", {}, sizeOf(layer))];
      return choice("layer", layer.name, words, () => this.set({ layer: layer.name }));
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
  return `${size.join("×")} · ${px[0] === px[1] ? px[0] : px.join("×")} px`;
}

function reveal(list, row) {
  if (row.offsetTop < list.scrollTop || row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = row.offsetTop - list.clientHeight / 2;
  }
}
