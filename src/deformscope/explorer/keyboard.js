// The keyboard: a key for each action, and the arrows, which go from cell to cell or pan the photo.
import { byId, clamp } from "./dom.js";
import { VIEWS } from "./state.js";

const PAN = 60; // px
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function next(values, value, step = 1) {
  return values[(values.indexOf(value) + step + values.length) % values.length];
}

export class Keyboard {
  // `parts`: the stage, the panel and the places; `calls`: set(patch of the state), and the header's actions.
  constructor(app, photos, { stage, panel, places }, calls) {
    Object.assign(this, { app, photos, stage, panel, places, calls });
    const { set } = calls;
    this.actions = {
      "[": () => this.layerStep(-1),
      "]": () => this.layerStep(1),
      ",": () => this.photoStep(-1),
      ".": () => this.photoStep(1),
      g: () => set({ group: (app.state.group + 1) % app.field.groups }),
      k: () => {
        const key = app.state.view === "modulation" ? "mk" : "k";
        set({ [key]: app.state[key] + 1 < app.field.points ? app.state[key] + 1 : -1 });
      },
      d: () => set({ depth: next([1, 2, 3], app.state.depth) }),
      f: () => set({ follow: !app.state.follow, from: null }),
      b: () => set({ boxes: !app.state.boxes }),
      m: () => set({ mask: !app.state.mask }),
      "<": () => this.nudge(-1),
      ">": () => this.nudge(1),
      "+": () => stage.zoomAt(1.25),
      "=": () => stage.zoomAt(1.25),
      "-": () => stage.zoomAt(0.8),
      0: () => set({ zoom: 1, centre: null }),
      s: calls.png,
      S: calls.svg,
      l: calls.link,
      t: calls.theme,
      "?": calls.help,
      Escape: () => { app.hover = null; set({ a: null, b: null, from: null, why: -1 }); },
    };
    document.addEventListener("keydown", (event) => this.press(event));
  }

  layerStep(step) {
    const { photo, field } = this.app;
    const at = photo.layers.findIndex((layer) => layer.name === field.name);
    this.calls.set({ layer: photo.layers[clamp(at + step, 0, photo.layers.length - 1)].name });
  }

  photoStep(step) {
    const { photo, field } = this.app;
    this.calls.set({ photo: clamp(photo.number + step, 0, this.photos - 1), layer: field.name });
  }

  nudge(direction) {
    this.calls.set({ div: this.app.state.div + direction * this.panel.threshold.step });
  }

  press(event) {
    const { app, stage, places } = this;
    if (!app.field || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const tag = event.target.tagName;
    if (tag === "SELECT" || tag === "TEXTAREA") return;
    const onStage = event.target === stage.node || event.target === document.body;
    let done = true;
    if (event.key in ARROWS && event.shiftKey && onStage)
      stage.panBy(...ARROWS[event.key].map((value) => -value * PAN).reverse());
    else if (event.key in ARROWS && onStage) places.move(...ARROWS[event.key]);
    else if (event.key === "Enter" && event.target === stage.node && app.hover) places.click(app.hover);
    else if (/^[1-7]$/.test(event.key)) this.calls.set({ view: VIEWS[Number(event.key) - 1] });
    else if (event.key in this.actions) this.actions[event.key]();
    else done = false;
    if (done) event.preventDefault();
  }
}
