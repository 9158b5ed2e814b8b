// What a click, or the cursor of the arrow keys, does at a place of the photo: it pins it, sends a particle from it, or
// chooses a query. All of it is said to screen readers, too.
import { byId, clamp, say } from "./dom.js";
import { particleOf } from "./marks.js";
import { spoken } from "./numbers.js";
import { rowAt, stepped } from "./queries.js";

const NEAR = 14; // px: a click so near to a pin takes it away
const JOURNEY = 1200; // ms in which a particle's way is shown
const ENDS = { sink: "came to rest", edge: "left the map", "on its way": "still goes round" };

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Places {
  // `calls`: set(patch of the state), hover(place), marks(share of the particle's way).
  constructor(app, { stage, numbers }, calls) {
    Object.assign(this, { app, stage, numbers, calls });
  }

  click(place) {
    const { app } = this;
    const { set } = this.calls;
    if (!app.field) return;
    app.hover = place;
    const { state } = app;
    if (app.field.kind === "queries") {
      set({ query: app.field.ids[rowAt(app, place)] });
      return say(spoken(this.numbers.update(app, place).a));
    }
    if (state.follow) return this.send(place);
    const { scale } = this.stage.frame(app);
    const far = (pin) =>
      state[pin] ? Math.hypot(state[pin][0] - place[0], state[pin][1] - place[1]) * scale : Infinity;
    const near = ["a", "b"].find((pin) => far(pin) < NEAR);
    if (near) set({ [near]: null });
    else if (!state.a) set({ a: place });
    else set({ b: place });
    const letter = near ? "unpinned" : state.a ? "pinned as B" : "pinned as A";
    say(`${letter}: ${spoken(this.numbers.update(app, place).here)}`);
  }

  // Send a particle from a place and show its way, all at once where motion is not wanted.
  send(from) {
    this.calls.set({ from });
    if (calm.matches) return;
    const began = performance.now();
    const step = (now) => {
      if (this.app.state.from !== from) return;
      const share = clamp((now - began) / JOURNEY, 0, 1);
      this.calls.marks(share);
      if (share < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  // Say where the particle came to.
  tellParticle() {
    const words = this.journey();
    if (byId("ended").textContent === words) return;
    byId("ended").textContent = words;
    if (words) say(words);
  }

  journey() {
    const { state, field } = this.app;
    if (!state.from) return "";
    const { path, end } = particleOf(field, state);
    const last = path[path.length - 1];
    const at = last.map((value) => value.toFixed(1)).join(", ");
    return `The particle ${ENDS[end]} at ${at} px (y, x), cell ${field.cellAt(last).join(", ")}.`;
  }

  // The arrow keys: to the next cell, or the next query.
  move(down, across) {
    const { app } = this;
    const { field, photo, state } = app;
    if (field.kind === "queries") {
      this.calls.set({ query: stepped(app, down + across) });
      return say(spoken(this.numbers.update(app, null).a));
    }
    const from = app.hover || state.b || state.a || photo.size.map((length) => length / 2);
    const cell = field
      .cellAt(from)
      .map((value, axis) => clamp(value + [down, across][axis], 0, [field.h, field.w][axis] - 1));
    const place = field.centre(app.hover || state.a ? cell : field.cellAt(from));
    this.calls.hover(place.map((value, axis) => clamp(value, 0, photo.size[axis])));
    say(spoken(this.numbers.update(app, app.hover).here));
  }
}
