// The photo's stage: three canvases on each other, and pointers that inspect, pin, pan and zoom.
import { byId, clamp } from "./dom.js";

const MOST_ZOOM = 40;
const SLACK = 5; // px that a pointer may move in a click

// How photo px lie on a picture of width × height px.
export function frameOf(size, width, height, state, theme, margin = 0) {
  const fit = Math.min((width - 2 * margin) / size[1], (height - 2 * margin) / size[0]);
  const scale = Math.max(fit, 1e-6) * state.zoom;
  const centre = state.centre || [size[0] / 2, size[1] / 2];
  return framed(scale, width / 2 - centre[1] * scale, height / 2 - centre[0] * scale, state.zoom, theme, size);
}

export function framed(scale, left, top, zoom, theme, size) {
  return {
    scale, zoom, theme, left, top,
    width: size[1] * scale,
    height: size[0] * scale,
    xy: ([y, x]) => [left + x * scale, top + y * scale],
    place: (x, y) => [(y - top) / scale, (x - left) / scale],
  };
}

export class Stage {
  // `calls`: hover(place or null), click(place), view(patch of the state), each place [y, x] in photo px.
  constructor(calls) {
    this.node = byId("stage");
    this.canvases = ["base", "marks", "hover"].map(byId);
    this.calls = calls;
    this.pointers = new Map();
    this.listen();
  }

  // Fit the canvases to their room; true when that changed something.
  fit() {
    const { clientWidth: width, clientHeight: height } = this.node;
    const ratio = Math.min(window.devicePixelRatio || 1, 3);
    if (width === this.width && height === this.height && ratio === this.ratio) return false;
    Object.assign(this, { width, height, ratio });
    for (const canvas of this.canvases)
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    return true;
  }

  frame(app) {
    this.app = app;
    return frameOf(app.photo.size, this.width, this.height, app.state, app.theme, this.width > 640 ? 20 : 0);
  }

  // A cleared context in CSS px.
  clear(index) {
    const context = this.canvases[index].getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    return context;
  }

  zoomAt(factor, x = this.width / 2, y = this.height / 2) {
    const { state } = this.app;
    const frame = this.frame(this.app);
    const zoom = clamp(state.zoom * factor, 1, MOST_ZOOM);
    const [py, px] = frame.place(x, y);
    const scale = (frame.scale * zoom) / state.zoom;
    this.look(zoom, [py + (this.height / 2 - y) / scale, px + (this.width / 2 - x) / scale]);
  }

  panBy(dx, dy) {
    const frame = this.frame(this.app);
    this.look(this.app.state.zoom, frame.place(this.width / 2 - dx, this.height / 2 - dy));
  }

  look(zoom, centre) {
    const { size } = this.app.photo;
    const inside = centre.map((value, axis) => clamp(value, 0, size[axis]));
    this.calls.view(zoom <= 1.001 ? { zoom: 1, centre: null } : { zoom, centre: inside });
  }

  listen() {
    const { node } = this;
    node.addEventListener("pointerdown", (event) => this.down(event));
    node.addEventListener("pointermove", (event) => this.move(event));
    node.addEventListener("pointerup", (event) => this.up(event));
    node.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    node.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.calls.hover(null));
    node.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.calls.resized()).observe(node);
  }

  // Where a pointer is on the photo, or null beside it.
  placeOf(event) {
    if (!this.app) return null;
    const { left, top } = this.node.getBoundingClientRect();
    const place = this.frame(this.app).place(event.clientX - left, event.clientY - top);
    const { size } = this.app.photo;
    return place.every((value, axis) => value >= 0 && value <= size[axis]) ? place : null;
  }

  down(event) {
    if (event.button > 0) return;
    this.node.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, {
      x: event.clientX,
      y: event.clientY,
      startX: event.clientX,
      startY: event.clientY,
    });
    if (this.pointers.size === 1) this.moved = false;
    else this.moved = true; // a second finger: no click any more
    if (event.pointerType !== "mouse") this.calls.hover(this.placeOf(event));
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return this.calls.hover(this.placeOf(event));
    const before = this.spread();
    const [dx, dy] = [event.clientX - pointer.x, event.clientY - pointer.y];
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
    if (Math.hypot(pointer.x - pointer.startX, pointer.y - pointer.startY) > SLACK) this.moved = true;
    if (!this.moved) return undefined;
    if (this.pointers.size === 2) return this.pinch(before);
    // One finger looks at places; a mouse drags the photo.
    if (event.pointerType === "mouse") return this.panBy(dx, dy);
    return this.calls.hover(this.placeOf(event));
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId) || this.pointers.size || this.moved) return;
    const place = this.placeOf(event);
    if (place) this.calls.click(place);
  }

  // Distance and middle of two fingers, px on the stage.
  spread() {
    if (this.pointers.size !== 2) return null;
    const [a, b] = this.pointers.values();
    const { left, top } = this.node.getBoundingClientRect();
    return { far: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2 - left, y: (a.y + b.y) / 2 - top };
  }

  pinch(before) {
    const after = this.spread();
    if (!before || !after || before.far < 1) return;
    this.calls.hover(null);
    this.panBy(after.x - before.x, after.y - before.y);
    this.zoomAt(after.far / before.far, after.x, after.y);
  }

  wheel(event) {
    event.preventDefault();
    if (!this.app) return;
    const { left, top } = this.node.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 30 : 1;
    // A trackpad's pinch arrives as a wheel with ctrl, in smaller steps.
    const pace = event.ctrlKey ? 0.01 : 0.0016;
    this.zoomAt(Math.exp(-event.deltaY * lines * pace), event.clientX - left, event.clientY - top);
  }
}
