// Colours that people with any colour vision can tell apart; where two must be compared, shape or letter tells too.

export const COLORS = {
  converge: [230, 24, 74],
  trend: "#f0e442",
  box: "#00b8d9",
  together: "#e7298a",
  a: "#e69f00",
  b: "#56b4e9",
  particle: "#f0e442",
  adds: "#d7301f",
  takes: "#2b8cde",
  dark: { ink: "#ffffff", halo: "#0b0d10", ground: "#0b0d10" },
  light: { ink: "#0d2238", halo: "#ffffff", ground: "#ffffff" },
};
// Regions are told apart by neighbours' lightness as well as hue (Okabe and Ito's set).
export const REGIONS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];
// Viridis at nine places; between them straight.
const SCALE = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"].map((hex) =>
  [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)),
);
export function scaleColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((value, i) => Math.round(value + (SCALE[low + 1][i] - value) * (place - low)));
}
