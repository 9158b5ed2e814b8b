// The view as a picture: what the stage shows, cropped to the photo, over a line that says what it is.
import { brief, el } from "./dom.js";
import { COLORS } from "./colors.js";
import { drawDetections, drawMarks } from "./marks.js";
import { CanvasPen, SvgPen, shapes } from "./pens.js";
import { queriesCaption } from "./queries.js";
import { framed } from "./stage.js";
import { drawView } from "./views.js";
import { drawWhy, whyCaption, whyOf } from "./whys.js";

const [SIZE, LEADING, MARGIN] = [12, 16, 10]; // of the caption, px

// Photo, wash, view and detections: what lies under the marks.
export function drawGround(pen, frame, app) {
  pen.image(app.photo.picture, frame.left, frame.top, frame.width, frame.height);
  const veil = shapes.box(frame.left, frame.top, frame.left + frame.width, frame.top + frame.height);
  pen.fill(veil, { color: COLORS[frame.theme].ground, alpha: 1 - app.state.light });
  const shown = whyOf(app) ? { ...app, state: { ...app.state, opacity: 0 } } : app; // the points stand for themselves
  if (app.field.kind === "queries") {
    drawDetections(pen, frame, app);
    return drawView(pen, frame, app); // also beyond the photo, where some of their points lie
  }
  const drawn = pen.clipped(veil, () => drawView(pen, frame, shown));
  drawDetections(pen, frame, app);
  pen.clipped(veil, () => drawWhy(pen, frame, app));
  return drawn;
}

const togetherOf = ({ together }) => `|r| of kernels drawn together, up to ${brief(together)} cells`;

// What a view shows, in words, with its factor.
export function captionOf({ state, field, photo }, drawn) {
  if (field.kind === "queries") return queriesCaption({ state, field, photo });
  const px = field.between.map((value) => Number(value.toPrecision(2)));
  const times = drawn.factor === 1 ? "" : ` × ${brief(drawn.factor)}`;
  const what = {
    flow: `d_f${times}${state.mask ? `, divergence below ${brief(state.div)}/cell in red` : ""}`,
    circles: `circles of radius r of d_k${times}${drawn.together ? `, in pink ${togetherOf(drawn)}` : ""}`,
    points:
      state.k < 0
        ? `offsets of all kernel points${times}`
        : `offsets of kernel point ${state.k}${times}, in yellow their mean × ${brief(drawn.trend)}`,
    sampling: "sampling points",
    modulation: state.mk < 0 ? "modulation, mean over the kernel" : `modulation of kernel point ${state.mk}`,
    segments: `${drawn.count ?? 0} segments`,
  }[state.view];
  const why = whyOf({ state, field, photo });
  const group = field.groups > 1 && !why ? ` · ${field.group_names?.[state.group] ?? `group ${state.group}`}` : "";
  const cell = px[0] === px[1] ? px[0] : px.join("×");
  return `${why ? whyCaption(why) : what} · ${field.name}${group} · ${cell} px/cell · ${photo.title}`;
}

// The part of the photo that the stage shows, as a frame of its own and its size in px.
function cropped(stage, app) {
  const frame = stage.frame(app);
  const left = Math.max(frame.left, 0);
  const top = Math.max(frame.top, 0);
  const width = Math.floor(Math.min(frame.left + frame.width, stage.width) - left);
  const height = Math.floor(Math.min(frame.top + frame.height, stage.height) - top);
  return {
    width,
    height,
    frame: framed(frame.scale, frame.left - left, frame.top - top, frame.zoom, frame.theme, app.photo.size),
  };
}

// The words in lines that are at most as wide as the room, broken between words where they can be.
function broken(words, room) {
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = `${SIZE}px system-ui, sans-serif`;
  const fits = (line) => ruler.measureText(line).width <= room;
  const lines = [""];
  for (let word of words.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trimStart();
    if (fits(longer)) {
      lines[lines.length - 1] = longer;
      continue;
    }
    if (lines.at(-1)) lines.push("");
    while (!fits(word) && word.length > 1) {
      let end = Math.min(word.length - 1, Math.ceil(room / 2)); // hardly a letter is narrower than 2 px
      while (end > 1 && !fits(word.slice(0, end))) end -= 1;
      lines[lines.length - 1] = word.slice(0, end);
      lines.push("");
      word = word.slice(end);
    }
    lines[lines.length - 1] = word;
  }
  return lines;
}

// The picture's size and how to draw it: the photo's part, and its caption below.
function composed(stage, app) {
  const { width, height, frame } = cropped(stage, app);
  const lines = broken(captionOf(app, app.drawn), Math.max(80, width - 2 * MARGIN)); // a sliver has its end cut
  const whole = height + LEADING * lines.length + 14;
  const { ground, ink: color } = COLORS[frame.theme];
  const draw = (pen) => {
    drawGround(pen, frame, app);
    drawMarks(pen, frame, app);
    pen.fill(shapes.box(0, height, width, whole), { color: ground });
    lines.forEach((line, index) => pen.text(line, MARGIN, height + 20 + LEADING * index, { color, size: SIZE }));
  };
  return { width, height: whole, ground, draw };
}

export async function pngOf(stage, app) {
  const { width, height, draw } = composed(stage, app);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * 2, height * 2];
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  draw(new CanvasPen(context));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function svgOf(stage, app) {
  const { width, height, ground, draw } = composed(stage, app);
  const pen = new SvgPen();
  draw(pen);
  return new Blob([pen.document(width, height, ground)], { type: "image/svg+xml" });
}

// Hand a file to the user, named after what it shows.
export function download(blob, { photo, field, state }, ending) {
  const stem = photo.title.replace(/\.\w{1,5}$/, "");
  const name = [stem, field.name, state.view].join("-").replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 120);
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: `${name}.${ending}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
