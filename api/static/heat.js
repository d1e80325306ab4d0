// What each step and each layer costs in quality, prompt by prompt, as the error model has it.

import { drawnToFit, fill, h, svg, table } from "./dom.js";
import { count, percent } from "./format.js";

const LEGIBLE = 0.68; // of the darkest: there black and white text stand out alike, in light and in dark

/** `sensitivity` is the service's document. */
export function heat(sensitivity) {
  const { prompts, measured } = sensitivity;
  const dtypes = [...new Set(prompts.flatMap((each) => each.dtypes.map(({ dtype }) => dtype)))];
  return [
    h("p", { class: "hint" },
      "Share of the squared error by the error model, fitted to ",
      `${count(measured, "measured policy", "measured policies")}; each row adds up to 100 %. `,
      "The strongest cells are worth keeping native."),
    ...dtypes.map((dtype) => h("div", { class: "heats" },
      map(sensitivity, dtype, "steps", "step"), map(sensitivity, dtype, "layers", "layer"))),
  ];
}

function map({ prompts, ...sensitivity }, dtype, axis, noun) {
  const columns = sensitivity[axis];
  const rows = prompts
    .map((each) => ({ ...each, shares: each.dtypes.find((found) => found.dtype === dtype)?.[axis] }))
    .filter((row) => row.shares);
  const most = Math.max(...rows.flatMap((row) => row.shares));
  const canvas = h("div", { class: "heat", "data-axis": axis, "data-dtype": dtype });
  drawnToFit(canvas, (width) => fill(canvas, drawn(rows, columns, noun, most, width)));
  return h("figure", {}, h("figcaption", {}, `${dtype}, by ${noun}`), canvas, scale(most),
    h("details", {}, h("summary", {}, "Figures"),
      table(`Share of the squared error in ${dtype}, by ${noun}`,
        [[noun, "number"], ...rows.map((row) => [`${row.prompt} (seed ${row.seed})`, "number"])],
        columns.map((index, column) => [index, ...rows.map((row) => percent(row.shares[column], 2))]))));
}

function drawn(rows, columns, noun, most, width) {
  const across = Math.min(56, width / columns.length);
  const [text, down] = [20, 26];
  const height = rows.length * (text + down + 6) + 20;
  const every = Math.ceil(22 / across);
  const shapes = rows.flatMap((row, at) => {
    const top = at * (text + down + 6);
    return [
      svg("text", { class: "prompt", x: 0, y: top + 14 }, short(row.prompt, width / 7)),
      ...row.shares.map((share, column) => cell(share, most, {
        x: column * across, y: top + text, width: across - 1, height: down,
        "data-prompt": at, "data-index": columns[column], "data-share": share,
      }, `${row.prompt}: ${noun} ${columns[column]}, ${percent(share, 2)}`)),
    ];
  });
  const numbers = columns.filter((_, column) => column % every === 0).map((index) =>
    svg("text", { x: (columns.indexOf(index) + 0.5) * across, y: height - 6, "text-anchor": "middle" }, index));
  const worst = rows.map((row) => `${row.prompt}: most in ${noun} ${columns[row.shares.indexOf(Math.max(...row.shares))]}`);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": worst.join("; ") }, shapes, numbers);
}

function cell(share, most, attributes, title) {
  const level = most > 0 ? share / most : 0;
  return svg("g", {}, svg("title", {}, title),
    svg("rect", { class: "paper", x: attributes.x, y: attributes.y, width: attributes.width, height: attributes.height }),
    svg("rect", { class: "share", "fill-opacity": (0.04 + 0.96 * level).toFixed(3), ...attributes }),
    attributes.width >= 34 && svg("text", {
      class: level > LEGIBLE ? "strong" : "weak", x: attributes.x + attributes.width / 2, y: attributes.y + 17, "text-anchor": "middle",
    }, (100 * share).toFixed(share < 0.0995 ? 1 : 0)));
}

function scale(most) {
  const levels = [0, 0.25, 0.5, 0.75, 1];
  return h("p", { class: "scale" }, "0 %",
    svg("svg", { class: "heat", width: 100, height: 12, "aria-hidden": "true" },
      levels.map((level, index) => svg("rect", {
        class: "share", "fill-opacity": 0.04 + 0.96 * level, x: 20 * index, y: 0, width: 19, height: 12,
      }))),
    percent(most, 0));
}

const short = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, Math.floor(most) - 1))}…` : text);
