// Which of a photo's layers is shown, and which others its sampling points are followed into.

// The layer that is asked for, or one whose cells are about a twentieth of the photo apart.
export function layerNumber({ layers, size, start }, name) {
  for (const wanted of [name, start]) {
    const found = layers.findIndex((layer) => layer.name === wanted);
    if (found >= 0) return found;
  }
  const far = (layer) =>
    layer.kind === "queries" ? Infinity : Math.abs(
      Math.log(
        (20 * Math.abs(layer.cells.reduction[0] * layer.stride[0])) / layer.placement.scale[0] / Math.max(...size),
      ),
    );
  return layers.reduce((best, layer, i) => (far(layer) <= far(layers[best]) ? i : best), 0);
}

// A layer and those below it through which its input came, lowest first; where that is not known, those before it.
export function stackNumbers(layers, top, depth) {
  const order = [top];
  while (order.length < depth) {
    const { below, kind } = layers[order[0]];
    if (kind === "queries") break;
    const next = below === null ? order[0] - 1 : layers.findIndex((layer) => below && layer.name === below);
    if (next < 0) break;
    order.unshift(next);
  }
  return order;
}
