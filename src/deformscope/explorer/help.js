// The help that "?" opens: all keys, and what the page's marks and numbers are.
import { el } from "./dom.js";

const KEYS_HELP = [
  ["1 – 7", "view"],
  ["[ ]", "layer before, after"],
  [", .", "photo before, after"],
  ["G", "offset group, head"],
  ["K", "kernel point"],
  ["D", "layers deep"],
  ["arrow keys", "from cell to cell, or query to query, on the photo"],
  ["Enter", "pin the cell"],
  ["F", "follow the flow"],
  ["Escape", "remove pins, particle and explanation"],
  ["+ − 0", "zoom, whole photo"],
  ["Shift + arrow keys", "pan"],
  ["B", "detections"],
  ["M", "divergence mask"],
  ["< >", "threshold"],
  ["S, Shift S", "save as PNG, SVG"],
  ["L", "copy the link"],
  ["T", "dark or light"],
];

const HINT = [
  "Wheel or two fingers zoom, dragging with the mouse pans.",
  "Marks at a place have true size;",
  "arrows and circles are drawn as many times longer as the line below the photo says.",
  "Numbers come from offsets in 16 bits, at most 1/512 cell beside the network's own unless a layer's largest exceeds",
  "128 cells, and then below 1/100.",
].join(" ");

export function helpContent() {
  const rows = KEYS_HELP.map(([keys, words]) => el("tr", {}, el("th", { scope: "row" }, keys), el("td", {}, words)));
  return [
    el("h2", { id: "help-title" }, "Keys"),
    el("table", {}, el("tbody", {}, ...rows)),
    el("p", { class: "hint" }, HINT),
    el("form", { method: "dialog" }, el("button", { type: "submit" }, "Close")),
  ];
}
