// The numbers at a place: a table for the place under the pointer and the pinned ones, in cells and in photo px.
import { byId, digits, el } from "./dom.js";
import { queryNumbers } from "./queries.js";

// Row key, heading, unit; pairs are y, x.
const ROWS = [
  ["cell", "cell", ""],
  ["centre", "centre", "px"],
  ["d_f", "d_f", "cells"],
  ["d_f_px", "d_f", "px"],
  ["length", "|d_f|", "cells · px"],
  ["divergence", "divergence", "/cell"],
  ["spread", "spread", "cells"],
  ["radius", "radius", "cells · px"],
  ["modulation", "Δm", "mean"],
  ["segment", "segment", "score"],
];
const QUERY_ROWS = [
  ["query", "query", ""],
  ["reference", "reference", "px"],
  ["box", "its height, width", "px"],
  ["mean", "weighted mean", "px"],
  ["moved", "from reference", "px"],
  ["deviation", "spread", "px"],
  ["inside", "weight in box", "%"],
  ["outside", "points off photo", ""],
];
const COLUMNS = [["here", "here"], ["a", "A"], ["b", "B"]];

// What the library says of the cell at a place [y, x] of the photo: numbers, (y, x) pairs first y.
export function numbersAt(field, group, place, size) {
  const cell = field.cellAt(place);
  const i = cell[0] * field.w + cell[1];
  const view = field.viewpoint(group);
  const d_f = [view.dy[i], view.dx[i]];
  const px = d_f.map((value, axis) => value * field.perCell[axis]);
  // As in Figure 3, −|r| stands for a kernel that is drawn together.
  const radius = view.together[i] > 0 ? -view.together[i] : view.radius[i];
  return {
    cell, d_f, px, i,
    centre: field.centre(cell),
    length: [Math.hypot(...d_f), Math.hypot(...px)],
    divergence: view.div[i],
    spread: [view.height[i], view.width[i]],
    radius: [radius, radius * field.radiusScale],
    modulation: field.modulation ? view.modulation[i] : null,
    segment: field.segments ? regionAt(field.segments, place, size) : null,
  };
}

// The number and the score of the region at a place.
function regionAt({ h, w, labels, scores }, place, size) {
  const [y, x] = [h, w].map((count, axis) => Math.min(Math.floor((place[axis] / size[axis]) * count), count - 1));
  const number = labels[y * w + x];
  return { number, score: number ? scores[number - 1] : null };
}

function texts(n) {
  const pair = (values, count, sign) => values.map((value) => digits(value, count, sign)).join(", ");
  return {
    cell: n.cell.join(", "),
    centre: pair(n.centre, Math.max(...n.centre) < 1000 ? 1 : 0), // as many digits as find room
    d_f: pair(n.d_f, 2, true),
    d_f_px: pair(n.px, 1, true),
    length: `${digits(n.length[0])} · ${digits(n.length[1], 1)}`,
    divergence: digits(n.divergence, 3, true),
    spread: `${digits(n.spread[0])} × ${digits(n.spread[1])}`,
    radius: `${digits(n.radius[0])} · ${digits(n.radius[1], 1)}`,
    modulation: n.modulation === null ? "" : digits(n.modulation, 3),
    segment:
      n.segment === null ? "" : n.segment.number ? `${n.segment.number} · ${digits(n.segment.score ?? NaN)}` : "none",
  };
}

// B − A, where that has a meaning.
function difference(a, b) {
  const less = (key) => b[key].map((value, axis) => value - a[key][axis]);
  const pair = (values, count) => values.map((value) => digits(value, count, true)).join(", ");
  return {
    cell: pair(less("cell"), 0),
    centre: pair(less("centre"), 0),
    d_f: pair(less("d_f"), 2),
    d_f_px: pair(less("px"), 1),
    length: less("length").map((value, unit) => digits(value, unit ? 1 : 2, true)).join(" · "),
    divergence: digits(b.divergence - a.divergence, 3, true),
    spread: less("spread").map((value) => digits(value, 2, true)).join(", "),
    radius: less("radius").map((value, unit) => digits(value, unit ? 1 : 2, true)).join(" · "),
    modulation: a.modulation === null ? "" : digits(b.modulation - a.modulation, 3, true),
    segment: "",
  };
}

// The same in words, for a screen reader.
export function spoken(n) {
  if (n.words) return n.words;
  const px = n.px.map((value) => digits(value, 1)).join(", ");
  const together = n.radius[0] < 0 ? "kernel drawn together, " : "";
  return (
    `cell ${n.cell.join(", ")}: d f ${n.d_f.map((value) => digits(value)).join(", ")} cells, ${px} pixels; ` +
    `divergence ${digits(n.divergence, 3)}; ${together}radius ${digits(Math.abs(n.radius[0]))} cells`
  );
}

const POINT = "Point at the photo, or touch it. A click pins a place, a second one is compared with it.";
const CHOOSE = "A click chooses the query of the detection there, or the nearest; arrow keys go through detections.";

export class Numbers {
  constructor(unpin) {
    this.cells = {};
    this.rows = {};
    this.shown = {};
    const head = COLUMNS.map(([key, words]) => {
      const title = el("span", {}, words);
      const button =
        key === "here"
          ? null
          : el(
              "button",
              { type: "button", class: "unpin", "aria-label": `remove pin ${words}`, click: () => unpin(key) },
              "×",
            );
      this.shown[key] = { title, button };
      return el("th", { scope: "col", "data-column": key }, title, button);
    });
    const body = [...ROWS, ...QUERY_ROWS].map(([row, words, unit]) => {
      this.cells[row] = Object.fromEntries(
        COLUMNS.map(([column]) => [column, el("td", { "data-row": row, "data-column": column })]),
      );
      const heading = el("th", { scope: "row" }, words ? `${words} ` : "", el("small", {}, unit));
      this.rows[row] = el("tr", {}, heading, ...Object.values(this.cells[row]));
      return this.rows[row];
    });
    this.points = el("tbody");
    this.list = el(
      "details",
      {},
      el("summary", {}, "Sampling points"),
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "points" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ...["k", "Δp dy, dx cells", "at y, x px", "Δm"].map((words) => el("th", { scope: "col" }, words)),
            ),
          ),
          this.points,
        ),
      ),
    );
    this.list.addEventListener("toggle", () => this.listPoints());
    this.hint = el("p", { class: "hint" }, POINT);
    const table = el(
      "table",
      { class: "numbers" },
      el("thead", {}, el("tr", {}, el("td", {}, el("small", {}, "pairs: y, x")), ...head)),
      el("tbody", {}, ...body),
    );
    byId("numbers").append(table, this.hint, this.list);
  }

  // `hover`: the place under the pointer, or null.
  update(app, hover) {
    const { field, state } = app;
    const places = { here: hover, a: state.a, b: state.b };
    const queries = field.kind === "queries";
    const found = queries
      ? queryNumbers(app, hover)
      : Object.fromEntries(
          COLUMNS.map(([key]) => [
            key,
            places[key] ? numbersAt(field, state.group, places[key], app.photo.size) : null,
          ]),
        );
    const compared = !hover && found.a && found.b;
    for (const [key] of COLUMNS) {
      const own = found[key] ? (found[key].texts ?? texts(found[key])) : null;
      const shown = key === "here" && compared ? difference(found.a, found.b) : own;
      const empty = key === "here" && !found.a ? "–" : "";
      for (const [row] of queries ? QUERY_ROWS : ROWS) write(this.cells[row][key], shown ? shown[row] : empty);
      const { title, button } = this.shown[key];
      if (button) button.hidden = !found[key] || (queries && state.query < 0);
      title.parentNode.classList.toggle("empty", !shown);
    }
    write(this.shown.here.title, compared ? "B − A" : "here");
    write(this.shown.a.title, queries ? "chosen" : "A");
    this.shown.b.title.hidden = queries;
    for (const [row] of ROWS) this.rows[row].hidden = queries;
    for (const [row] of QUERY_ROWS) this.rows[row].hidden = !queries || (row === "box" && !field.boxes);
    this.rows.modulation.hidden ||= !field.modulation;
    this.rows.segment.hidden ||= !field.segments;
    this.hint.hidden = !queries && Boolean(found.a || found.b);
    write(this.hint, queries ? CHOOSE : POINT);
    this.list.hidden = queries;
    if (queries) return found;
    this.listed = { field, state, one: found.here || found.b || found.a };
    if (this.list.open) this.listPoints();
    return found;
  }

  listPoints() {
    if (!this.list.open || !this.listed) return;
    const { field, state, one } = this.listed;
    if (this.points.childElementCount !== field.points) {
      const row = () => el("tr", {}, ...Array.from({ length: 4 }, () => el("td")));
      this.points.replaceChildren(...Array.from({ length: field.points }, row));
    }
    [...this.points.children].forEach((row, k) => {
      const offset = one ? [0, 1].map((axis) => field.offsetAt(state.group, k, axis, one.i)) : null;
      const at =
        one && offset.map((value, axis) => field.toPhoto(field.regular(one.cell[axis], k, axis) + value, axis));
      write(row.children[0], String(k));
      write(row.children[1], one ? offset.map((value) => digits(value, 2, true)).join(", ") : "");
      write(row.children[2], one ? at.map((value) => digits(value, 1)).join(", ") : "");
      write(row.children[3], one && field.modulation ? digits(field.modulationAt(state.group, k, one.i), 2) : "");
    });
  }
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
