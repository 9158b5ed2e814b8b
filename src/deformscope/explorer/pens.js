// Two pens with the same strokes: one draws on a canvas, the other writes SVG. Both take path data in screen px.

// Path data for a pen; coordinates to a hundredth px.
const at = (value) => Math.round(value * 100) / 100;

export const shapes = {
  line: (x0, y0, x1, y1) => `M${at(x0)} ${at(y0)}L${at(x1)} ${at(y1)}`,
  polyline: (points) => (points.length ? `M${points.map(([x, y]) => `${at(x)} ${at(y)}`).join("L")}` : ""),
  circle: (x, y, r) =>
    `M${at(x - r)} ${at(y)}a${at(r)} ${at(r)} 0 1 0 ${at(2 * r)} 0a${at(r)} ${at(r)} 0 1 0 ${at(-2 * r)} 0`,
  ellipse: (x, y, rx, ry) =>
    rx > 0 && ry > 0
      ? `M${at(x - rx)} ${at(y)}a${at(rx)} ${at(ry)} 0 1 0 ${at(2 * rx)} 0a${at(rx)} ${at(ry)} 0 1 0 ${at(-2 * rx)} 0`
      : "",
  diamond(x, y, r) {
    const side = at(1.25 * r);
    return `M${at(x)} ${at(y - side)}l${side} ${side}l${-side} ${side}l${-side} ${-side}Z`;
  },
  triangle: (x, y, r) => `M${at(x)} ${at(y - 1.3 * r)}l${at(1.25 * r)} ${at(2.2 * r)}h${at(-2.5 * r)}Z`,
  times(x, y, r) {
    const [left, right, top, bottom] = [x - r, x + r, y - r, y + r].map(at);
    return `M${left} ${top}L${right} ${bottom}M${left} ${bottom}L${right} ${top}`;
  },
  square: (x, y, r) => `M${at(x - r)} ${at(y - r)}h${at(2 * r)}v${at(2 * r)}h${at(-2 * r)}Z`,
  box: (x0, y0, x1, y1) => `M${at(x0)} ${at(y0)}H${at(x1)}V${at(y1)}H${at(x0)}Z`,
  cross: (x, y, r) => `M${at(x - r)} ${at(y)}H${at(x + r)}M${at(x)} ${at(y - r)}V${at(y + r)}`,
  // A shaft with an open head that is never longer than half the arrow.
  arrow(x0, y0, x1, y1, head) {
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length = Math.hypot(dx, dy);
    if (!(length > 0.4)) return "";
    const size = Math.min(head, length * 0.5) / length;
    const [ux, uy] = [dx * size, dy * size];
    const [lx, ly, rx, ry] = [x1 - ux - uy * 0.6, y1 - uy + ux * 0.6, x1 - ux + uy * 0.6, y1 - uy - ux * 0.6];
    return `M${at(x0)} ${at(y0)}L${at(x1)} ${at(y1)}M${at(lx)} ${at(ly)}L${at(x1)} ${at(y1)}L${at(rx)} ${at(ry)}`;
  },
};

export class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  stroke(d, { color, width = 1, alpha = 1, dash = [] }) {
    if (!d || alpha <= 0) return;
    const c = this.context;
    Object.assign(c, { strokeStyle: color, lineWidth: width, globalAlpha: alpha, lineCap: "round", lineJoin: "round" });
    c.setLineDash(dash);
    c.stroke(new Path2D(d));
  }

  fill(d, { color, alpha = 1 }) {
    if (!d || alpha <= 0) return;
    Object.assign(this.context, { fillStyle: color, globalAlpha: alpha });
    this.context.fill(new Path2D(d));
  }

  // What `draw` draws stays inside the box.
  clipped(box, draw) {
    this.context.save();
    this.context.clip(new Path2D(box));
    const result = draw();
    this.context.restore();
    return result;
  }

  image(source, x, y, width, height, { alpha = 1, smooth = true } = {}) {
    const c = this.context;
    Object.assign(c, { globalAlpha: alpha, imageSmoothingEnabled: smooth, imageSmoothingQuality: "high" });
    c.drawImage(source, x, y, width, height);
  }

  text(words, x, y, { color, size = 12, back = null, bold = false }) {
    const c = this.context;
    Object.assign(c, {
      font: `${bold ? "600 " : ""}${size}px system-ui, sans-serif`,
      textBaseline: "alphabetic",
      globalAlpha: 1,
    });
    if (back) {
      const width = c.measureText(words).width;
      c.fillStyle = back;
      c.beginPath();
      c.roundRect(x - 4, y - size - 1, width + 8, size + 6, 3);
      c.fill();
    }
    c.fillStyle = color;
    c.fillText(words, x, y);
  }
}

const escaped = (text) =>
  String(text)
    // eslint-disable-next-line no-control-regex -- what XML forbids
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd")
    .replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

export class SvgPen {
  constructor() {
    this.parts = [];
  }

  stroke(d, { color, width = 1, alpha = 1, dash = [] }) {
    if (!d || alpha <= 0) return;
    const dashes = dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : "";
    const line = `stroke="${color}" stroke-width="${at(width)}" stroke-opacity="${at(alpha)}"${dashes}`;
    this.parts.push(`<path d="${d}" fill="none" ${line}/>`);
  }

  fill(d, { color, alpha = 1 }) {
    if (d && alpha > 0) this.parts.push(`<path d="${d}" fill="${color}" fill-opacity="${at(alpha)}"/>`);
  }

  clipped(box, draw) {
    const id = `clip${this.parts.length}`;
    this.parts.push(`<clipPath id="${id}"><path d="${box}"/></clipPath><g clip-path="url(#${id})">`);
    const result = draw();
    this.parts.push("</g>");
    return result;
  }

  image(source, x, y, width, height, { alpha = 1, smooth = true } = {}) {
    const href = source instanceof HTMLCanvasElement ? source.toDataURL() : source.src;
    this.parts.push(
      `<image href="${escaped(href)}" x="${at(x)}" y="${at(y)}" width="${at(width)}" height="${at(height)}" ` +
        `preserveAspectRatio="none" opacity="${at(alpha)}" image-rendering="${smooth ? "auto" : "pixelated"}"/>`,
    );
  }

  text(words, x, y, { color, size = 12, back = null, bold = false }) {
    // A paint-order outline stands in for the canvas's plate, whose width only a canvas could measure.
    const plate = back ? ` paint-order="stroke" stroke="${back}" stroke-width="5" stroke-linejoin="round"` : "";
    const weight = bold ? ` font-weight="600"` : "";
    this.parts.push(
      `<text x="${at(x)}" y="${at(y)}" font-size="${size}" fill="${color}"${weight}${plate}>${escaped(words)}</text>`,
    );
  }

  document(width, height, ground) {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
      `font-family="system-ui, sans-serif" stroke-linecap="round" stroke-linejoin="round">` +
      `<rect width="100%" height="100%" fill="${ground}"/>${this.parts.join("\n")}</svg>`
    );
  }
}
