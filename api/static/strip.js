// Which steps and layers of a policy run quantized: a grid of steps across and layers down.

import { drawnToFit, fill, h, svg } from "./dom.js";
import { count, percent, policyText } from "./format.js";

/** The indices of a selector such as "0,1,38-39", as the service writes them. */
export function indices(selector) {
  const found = new Set();
  for (const part of selector.split(",").filter(Boolean)) {
    const [first, last = first] = part.split("-").map(Number);
    for (let index = first; index <= last; index += 1) found.add(index);
  }
  return found;
}

/** `environment` has the number of steps and the list of layers. */
export function strip(policy, environment) {
  const { steps, layers } = environment;
  const nativeSteps = policy.native ? new Set(Array(steps).keys()) : indices(policy.skip_steps);
  const nativeLayers = policy.native ? new Set(layers) : indices(policy.skip_layers);
  const quantized = (step, layer) => !nativeSteps.has(step) && !nativeLayers.has(layer);
  const canvas = h("div", { class: "strip" });
  drawnToFit(canvas, (width) => fill(canvas, drawn(policy, steps, layers, quantized, width)));
  const key = (kind, text) => h("li", {}, svg("svg", { class: "strip", width: 18, height: 14, "aria-hidden": "true" },
    svg("rect", { class: kind, x: 1, y: 1, width: 15, height: 12 })), h("span", {}, text));
  return h("figure", {}, canvas,
    h("ul", { class: "legend" },
      policy.native ? null : key("quantized", `${policy.dtype}: ${percent(policy.share_quantized, 0)} of the cells`),
      key("native", "native")));
}

function drawn(policy, steps, layers, quantized, width) {
  const [left, top] = [34, 18];
  const across = Math.min(34, (width - left - 2) / steps);
  const down = Math.max(6, Math.min(20, 260 / layers.length));
  const height = top + down * layers.length + 20;
  const gap = across > 8 && down > 8 ? 1.5 : 0.5;
  const cells = layers.flatMap((layer, row) => Array.from({ length: steps }, (_, step) =>
    svg("rect", {
      class: quantized(step, layer) ? "quantized" : "native", "data-step": step, "data-layer": layer,
      x: left + step * across, y: top + row * down, width: across - gap, height: down - gap,
    }, svg("title", {}, `step ${step}, layer ${layer}: ${quantized(step, layer) ? policy.dtype : "native"}`))));
  const everyColumn = Math.ceil(22 / across);
  const everyRow = Math.ceil(13 / down);
  const numbers = [
    ...Array.from({ length: steps }, (_, step) => step).filter((step) => step % everyColumn === 0).map((step) =>
      svg("text", { x: left + (step + 0.5) * across, y: height - 6, "text-anchor": "middle" }, step)),
    ...layers.map((layer, row) => [layer, row]).filter(([, row]) => row % everyRow === 0).map(([layer, row]) =>
      svg("text", { x: left - 6, y: top + row * down + down / 2 + 4, "text-anchor": "end" }, layer)),
  ];
  const label = policy.native
    ? "every step and layer is native"
    : `${count(steps, "step")} across, ${count(layers.length, "layer")} down; ${policyText(policy)}`;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("text", { x: 2, y: 12 }, "layer ↓  step →"), cells, numbers);
}
