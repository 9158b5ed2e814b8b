// Starts the page and keeps state, drawing, controls and the URL's hash together.
import { byId, clamp, el } from "./dom.js";
import { helpContent } from "./help.js";
import { layerNumber, stackNumbers } from "./layers.js";
import { legendOf } from "./legend.js";
import { drawMarks, drawPlace, particleOf } from "./marks.js";
import { Numbers, spoken } from "./numbers.js";
import { Panel } from "./panel.js";
import { Photo, readIndex } from "./payload.js";
import { CanvasPen } from "./pens.js";
import { captionOf, download, drawGround, pngOf, svgOf } from "./save.js";
import { rowAt, stepped } from "./queries.js";
import { Stage } from "./stage.js";
import { VIEWS, fromHash, toHash } from "./state.js";
import { viewFor } from "./views.js";

const PAN = 60;
const HASH_PAUSE = 200; // ms: browsers refuse a history that changes faster
const FRAMED = location.protocol === "about:"; // a notebook's iframe has no address of its own

const index = readIndex();
const dark = matchMedia("(prefers-color-scheme: dark)");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const photos = new Map();
const app = {
  state: fromHash(location.hash),
  photo: null,
  field: null,
  stack: [],
  theme: "light",
  hover: null,
  drawn: null,
};
const stage = new Stage({ hover, click, view: set, resized: () => stage.fit() && redraw() });
const numbers = new Numbers((pin) => set(app.field.kind === "queries" ? { query: -1 } : { [pin]: null }));
const panel = new Panel({ set, theme: turnTheme, png: savePng, svg: saveSvg, link: copyLink, help: openHelp });
let wanted = 0; // counts the openings, so that a slow one does not overtake a later one

// --- state ----------------------------------------------------------------------------------------------------------

function set(patch) {
  const before = app.state;
  app.state = { ...before, ...patch };
  if ("photo" in patch && patch.photo !== before.photo)
    Object.assign(app.state, { zoom: 1, centre: null, a: null, b: null, from: null, hide: [], why: -1, query: -1 });
  if ("layer" in patch || "photo" in patch || "depth" in patch) open();
  else show();
}

async function open() {
  const turn = ++wanted;
  const { state } = app;
  const number = clamp(state.photo, 0, index.photos.length - 1);
  if (!photos.has(number)) photos.set(number, new Photo(number).open());
  const photo = await photos.get(number);
  const layer = layerNumber(photo, state.layer);
  const order = stackNumbers(photo.layers, layer, state.depth);
  const stack = await Promise.all(order.map((one) => photo.field(one)));
  if (turn !== wanted) return;
  const fresh = app.photo !== photo;
  Object.assign(app, { photo, stack, field: stack[stack.length - 1] });
  if (fresh) {
    app.hover = null;
    panel.open(app);
    stage.node.style.setProperty("--tall", photo.size[0] / photo.size[1]);
    for (const [i, one] of [...byId("thumbnails").children].entries())
      one.setAttribute("aria-current", String(i === number));
  }
  show();
}

// Draw everything after a change of the state.
function show() {
  if (!app.field) return;
  const { field, photo } = app;
  const state = { ...app.state };
  state.photo = photo.number;
  state.group = clamp(state.group, 0, field.groups - 1);
  for (const key of ["k", "mk"]) state[key] = clamp(Math.round(state[key]), -1, field.points - 1);
  state.view = viewFor(field, state.view);
  if (field.kind === "queries") state.from = null;
  for (const key of ["a", "b", "from"]) if (state[key] && !field.onPhoto(state[key], photo.size)) state[key] = null;
  if (!photo.whys.has(state.why)) state.why = -1;
  app.state = state;
  app.theme = state.theme === "auto" ? (dark.matches ? "dark" : "light") : state.theme;
  document.documentElement.dataset.theme = app.theme;
  stage.fit();
  redraw();
  writeHash();
}

let hashTimer = 0;
function writeHash() {
  if (FRAMED || hashTimer) return;
  hashTimer = setTimeout(() => {
    hashTimer = 0;
    const hash = toHash(app.state);
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
  }, HASH_PAUSE);
}

// --- drawing --------------------------------------------------------------------------------------------------------

let frameAsked = false;
function redraw() {
  if (frameAsked || !app.field) return;
  frameAsked = true;
  requestAnimationFrame(() => {
    frameAsked = false;
    const frame = stage.frame(app);
    app.drawn = drawGround(new CanvasPen(stage.clear(0)), frame, app);
    marks(1);
    drawHover();
    panel.update(app, app.drawn);
    byId("legend").replaceChildren(...legendOf(app, frame));
    const { layers } = app.photo;
    stage.node.setAttribute(
      "aria-label",
      `${app.photo.title}, ${app.field.name} of ${layers.length} layers: ${captionOf(app, app.drawn)}`,
    );
    tellParticle();
    if (!performance.getEntriesByName("photo drawn").length) performance.mark("photo drawn");
  });
}

function marks(share) {
  drawMarks(new CanvasPen(stage.clear(1)), stage.frame(app), app, share);
}

let hoverAsked = false;
function hover(place) {
  if (!app.field || (place === null && app.hover === null)) return;
  app.hover = place;
  if (hoverAsked) return;
  hoverAsked = true;
  requestAnimationFrame(() => {
    hoverAsked = false;
    drawHover();
  });
}

function drawHover() {
  const context = stage.clear(2);
  if (app.hover) drawPlace(new CanvasPen(context), stage.frame(app), app, app.hover, { color: "#ffffff" });
  numbers.update(app, app.hover);
}

// --- places ---------------------------------------------------------------------------------------------------------

const NEAR = 14; // px: a click so near to a pin takes it away

function click(place) {
  if (!app.field) return;
  app.hover = place;
  const { state } = app;
  if (app.field.kind === "queries") {
    set({ query: app.field.ids[rowAt(app, place)] });
    return say(spoken(numbers.update(app, place).a));
  }
  if (state.follow) return send(place);
  const { scale } = stage.frame(app);
  const far = (pin) => (state[pin] ? Math.hypot(state[pin][0] - place[0], state[pin][1] - place[1]) * scale : Infinity);
  const near = ["a", "b"].find((pin) => far(pin) < NEAR);
  if (near) set({ [near]: null });
  else if (!state.a) set({ a: place });
  else set({ b: place });
  const letter = near ? "unpinned" : state.a ? "pinned as B" : "pinned as A";
  say(`${letter}: ${spoken(numbers.update(app, place).here)}`);
}

// Send a particle from a place and show its way, all at once where motion is not wanted.
function send(from) {
  set({ from });
  if (calm.matches) return;
  const began = performance.now();
  const step = (now) => {
    if (app.state.from !== from) return;
    const share = Math.max(0, Math.min(1, (now - began) / 1200));
    marks(share);
    if (share < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

function tellParticle() {
  const { state, field } = app;
  const words = !state.from
    ? ""
    : (() => {
        const way = particleOf(field, state);
        const last = way.path[way.path.length - 1];
        const ended = { sink: "came to rest", edge: "left the map", "on its way": "still goes round" }[way.end];
        const at = last.map((value) => value.toFixed(1)).join(", ");
        return `The particle ${ended} at ${at} px (y, x), cell ${field.cellAt(last).join(", ")}.`;
      })();
  if (byId("ended").textContent === words) return;
  byId("ended").textContent = words;
  if (words) say(words);
}

function moveCursor(down, across) {
  const { field, photo, state } = app;
  if (field.kind === "queries") {
    set({ query: stepped(app, down + across) });
    return say(spoken(numbers.update(app, null).a));
  }
  const from = app.hover || state.b || state.a || photo.size.map((length) => length / 2);
  const cell = field
    .cellAt(from)
    .map((value, axis) => clamp(value + [down, across][axis], 0, [field.h, field.w][axis] - 1));
  const place = field.centre(app.hover || state.a ? cell : field.cellAt(from));
  hover(place.map((value, axis) => clamp(value, 0, photo.size[axis])));
  say(spoken(numbers.update(app, app.hover).here));
}

// --- header's actions -----------------------------------------------------------------------------------------------

function turnTheme() {
  set({ theme: app.theme === "dark" ? "light" : "dark" });
}

async function savePng() {
  download(await pngOf(stage, app), app, "png");
}

function saveSvg() {
  download(svgOf(stage, app), app, "svg");
}

async function copyLink() {
  const link = `${location.href.split("#")[0]}#${toHash(app.state)}`;
  try {
    await navigator.clipboard.writeText(link);
    say("The link to this view is copied.", true);
  } catch {
    say(FRAMED ? "Save the page to a file to link to a view." : "The address bar holds the link to this view.", true);
  }
}

function openHelp() {
  byId("help").showModal();
}

// For screen readers; shown to all for a moment when `seen`.
let sayTimer = 0;
function say(words, seen = false) {
  const node = byId("said");
  node.textContent = words;
  node.classList.toggle("unseen", !seen);
  clearTimeout(sayTimer);
  if (seen) sayTimer = setTimeout(() => node.classList.add("unseen"), 2600);
}

// --- keyboard -------------------------------------------------------------------------------------------------------

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function next(values, value, step = 1) {
  return values[(values.indexOf(value) + step + values.length) % values.length];
}

function layerStep(step) {
  const { layers } = app.photo;
  const at = layers.findIndex((layer) => layer.name === app.field.name);
  set({ layer: layers[clamp(at + step, 0, layers.length - 1)].name });
}

const ACTIONS = {
  "[": () => layerStep(-1),
  "]": () => layerStep(1),
  ",": () => set({ photo: clamp(app.photo.number - 1, 0, index.photos.length - 1), layer: app.field.name }),
  ".": () => set({ photo: clamp(app.photo.number + 1, 0, index.photos.length - 1), layer: app.field.name }),
  g: () => set({ group: (app.state.group + 1) % app.field.groups }),
  k: () => {
    const key = app.state.view === "modulation" ? "mk" : "k";
    set({ [key]: app.state[key] + 1 < app.field.points ? app.state[key] + 1 : -1 });
  },
  d: () => set({ depth: next([1, 2, 3], app.state.depth) }),
  f: () => set({ follow: !app.state.follow, from: null }),
  b: () => set({ boxes: !app.state.boxes }),
  m: () => set({ mask: !app.state.mask }),
  "<": () => nudge(-1),
  ">": () => nudge(1),
  "+": () => stage.zoomAt(1.25),
  "=": () => stage.zoomAt(1.25),
  "-": () => stage.zoomAt(0.8),
  0: () => set({ zoom: 1, centre: null }),
  s: savePng,
  S: saveSvg,
  l: copyLink,
  t: turnTheme,
  "?": openHelp,
  Escape: () => { app.hover = null; set({ a: null, b: null, from: null, why: -1 }); },
};

function nudge(direction) {
  const { min, max } = panel.controls.div.input;
  set({ div: app.state.div + (direction * (max - min)) / 100 });
}

function onKey(event) {
  if (!app.field || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const tag = event.target.tagName;
  if (tag === "SELECT" || tag === "TEXTAREA") return;
  const onStage = event.target === stage.node || event.target === document.body;
  let done = true;
  if (event.key in ARROWS && event.shiftKey && onStage)
    stage.panBy(...ARROWS[event.key].map((value) => -value * PAN).reverse());
  else if (event.key in ARROWS && onStage) moveCursor(...ARROWS[event.key]);
  else if (event.key === "Enter" && event.target === stage.node && app.hover) click(app.hover);
  else if (/^[1-7]$/.test(event.key)) set({ view: VIEWS[Number(event.key) - 1] });
  else if (event.key in ACTIONS) ACTIONS[event.key]();
  else done = false;
  if (done) event.preventDefault();
}

// --- start ----------------------------------------------------------------------------------------------------------

function build() {
  byId("thumbnails").hidden = index.photos.length < 2;
  byId("thumbnails").append(
    ...index.photos.map(({ title, thumbnail }, number) =>
      el(
        "button",
        {
          type: "button",
          "aria-label": `photo ${title}`,
          title,
          click: () => set({ photo: number, layer: app.field.name }),
        },
        el("img", { src: thumbnail, alt: "" }),
      ),
    ),
  );
  byId("help").append(...helpContent());
  document.addEventListener("keydown", onKey);
  dark.addEventListener("change", show);
  window.addEventListener("hashchange", () => { app.state = fromHash(location.hash); open(); });
  stage.fit();
  open();
}

build();
