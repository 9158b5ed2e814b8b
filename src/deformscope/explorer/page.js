// Starts the page and keeps state, drawing, controls and the URL's hash together.
import { byId, clamp, el, say } from "./dom.js";
import { helpContent } from "./help.js";
import { Keyboard } from "./keyboard.js";
import { layerNumber, stackNumbers } from "./layers.js";
import { legendOf } from "./legend.js";
import { drawMarks, drawPlace } from "./marks.js";
import { Numbers } from "./numbers.js";
import { Panel } from "./panel.js";
import { Photo, readIndex } from "./payload.js";
import { CanvasPen } from "./pens.js";
import { Places } from "./places.js";
import { captionOf, download, drawGround, pngOf, svgOf } from "./save.js";
import { Stage } from "./stage.js";
import { fromHash, toHash } from "./state.js";
import { viewFor } from "./views.js";

const HASH_PAUSE = 200; // ms: browsers refuse a history that changes faster
const FRAMED = location.protocol === "about:"; // a notebook's iframe has no address of its own

const index = readIndex();
const dark = matchMedia("(prefers-color-scheme: dark)");
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
const calls = { set, theme: turnTheme, png: savePng, svg: saveSvg, link: copyLink, help: openHelp };
const stage = new Stage({
  hover,
  click: (place) => places.click(place),
  view: set,
  resized: () => stage.fit() && redraw(),
});
const numbers = new Numbers((pin) => set(app.field.kind === "queries" ? { query: -1 } : { [pin]: null }));
const panel = new Panel(calls);
const places = new Places(app, { stage, numbers }, { set, hover, marks });
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
    places.tellParticle();
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
  new Keyboard(app, index.photos.length, { stage, panel, places }, calls);
  dark.addEventListener("change", show);
  window.addEventListener("hashchange", () => { app.state = fromHash(location.hash); open(); });
  stage.fit();
  open();
}

build();
