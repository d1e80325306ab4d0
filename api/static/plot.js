// The Pareto plot: latency against the worst prompt's PSNR. Every point of the front is a link, reached by Tab and then
// by the arrow keys.

import { drawnToFit, fill, h, svg } from "./dom.js";
import { decibels, holdoutText, IDENTICAL, latencyKind, percent, policyText, requirementText, worstPsnr } from "./format.js";
import { ticks, tickText } from "./ticks.js";

const KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** The bound on PSNR among a study's requirements such as "psnr_db>=60"; null where there is none. */
export function psnrBound(requirement) {
  const found = requirement.map((text) => /^psnr_db>=([0-9.]+)$/.exec(text)).find(Boolean);
  return found ? Number(found[1]) : null;
}

/** `study` is its front document and `trials` all its evaluations. Call `choose(id)` of what this returns to mark a
 *  policy as the one that is looked at, `show(study, trials)` for newer figures. */
export function plot(study, trials) {
  const canvas = h("div", { class: "plot", onkeydown: go, onfocusin: stay });
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const legend = h("ul", { class: "legend" });
  const element = h("figure", {}, canvas, readout, legend);
  let shown = pointsOf(study, trials);
  let chosen = null;

  const redraw = drawnToFit(canvas, (width) => {
    const focused = document.activeElement?.closest?.(".plot a")?.dataset.policy;
    fill(canvas, drawn(shown, chosen, width, (point) => { readout.textContent = pointText(point, shown.study); }));
    if (focused) canvas.querySelector(`a[data-policy="${focused}"]`)?.focus();
  });
  const told = () => {
    readout.textContent = "Choose a point to see its steps and layers, pictures and YAML. Arrow keys go from point to point.";
    fill(legend, legendOf(shown));
  };
  told();
  return {
    element,
    choose(id) {
      chosen = id;
      redraw();
    },
    show(newer, newerTrials) {
      shown = pointsOf(newer, newerTrials);
      told();
      redraw();
    },
    focus(id) {
      canvas.querySelector(`a[data-policy="${id}"]`)?.focus();
    },
  };
}

function pointsOf(study, trials) {
  const front = [...study.front];
  const best = study.recommended?.policy.id ?? null;
  if (best && !front.some((point) => point.policy.id === best)) front.push({ ...study.recommended, feasible: true });
  front.sort((one, other) => one.latency.relative - other.latency.relative);
  const drawn = new Set(front.map((point) => point.policy.id));
  const others = trials.filter((trial) => !trial.failed && !drawn.has(trial.policy.id));
  return { study, front, best, others, bound: psnrBound(study.requirement) };
}

function pointText(point, study) {
  return [
    policyText(point.policy),
    `latency ${percent(point.latency.relative)} of native (${point.latency.source})`,
    `worst prompt ${decibels(worstPsnr(point))}`,
    point.feasible ? `meets ${study.requirement.join(", ")}` : `misses ${study.requirement.join(", ")}`,
    holdoutText(point.holdout_met),
  ].join(" · ");
}

function scales({ front, others, bound, study }, width) {
  const height = Math.round(Math.min(460, Math.max(300, width * 0.56)));
  const box = { left: 46, right: width - 14, top: 34, bottom: height - 46 };
  const all = [...front, ...others];
  const latencies = [1, ...all.map((point) => point.latency.relative)].map((value) => 100 * value);
  const floor = study.noise_floor_db ?? null;
  const qualities = [...all.map(worstPsnr), bound, floor].filter((value) => value !== null);
  const [fastest, slowest] = [Math.min(...latencies), Math.max(...latencies)];
  const marginX = Math.max(0.5, 0.05 * (slowest - fastest));
  const [x0, x1] = [fastest - marginX, slowest + marginX];
  return {
    box, height, floor, x0, x1, ...upward(qualities, box),
    x: (relative) => box.left + ((100 * relative - x0) / (x1 - x0)) * (box.right - box.left),
  };
}

/** PSNR upward, from `y0` to `y1`. What is far above the rest, as identical frames are, would press that flat: then the
 *  axis is broken at `cut`, and what lies above it shares a narrow band. */
function upward(qualities, { top, bottom }) {
  const near = qualities.filter((value) => value < IDENTICAL);
  const [worst, best, upper] = [Math.min(...qualities, IDENTICAL), Math.max(...near, 0), Math.max(...qualities)];
  const margin = Math.max(1, 0.08 * (Math.max(best, worst) - worst));
  const [y0, cut, band] = [Math.max(0, worst - margin), best + margin, 46];
  if (near.length === 0 || upper - cut < 0.4 * (cut - y0)) {
    const y1 = upper + Math.max(1, 0.07 * (upper - y0));
    return { y0, y1, cut: null, y: (psnr) => bottom - ((psnr - y0) / (y1 - y0)) * (bottom - top) };
  }
  const y1 = upper + 0.4 * (upper - cut);
  const broken = top + band;
  const y = (psnr) => (psnr <= cut
    ? bottom - ((psnr - y0) / (cut - y0)) * (bottom - broken)
    : broken - ((psnr - cut) / (y1 - cut)) * band);
  return { y0, y1, cut, y };
}

function drawn(shown, chosen, width, tell) {
  const { study, front, others, bound, best } = shown;
  const scale = scales(shown, width);
  const links = front.map((point) => pointLink(point, { scale, study, best, chosen, tell }));
  const current = Math.max(0, front.findIndex((point) => point.policy.id === (chosen ?? best)));
  links.forEach((link, index) => link.setAttribute("tabindex", index === current ? "0" : "-1"));
  return svg("svg", {
    width, height: scale.height, viewBox: `0 0 ${width} ${scale.height}`, role: "group",
    "aria-label": `Pareto front of ${front.length} policies, fastest first: latency, ${latencyKind(study)}, against worst-prompt PSNR`,
  },
  floorOf(scale), axes(scale, study, width), boundOf(scale, bound, front),
  svg("g", { class: "others", "aria-hidden": "true" }, others.map((trial) => other(trial, scale))),
  staircase(front, scale), links);
}

/** The keys go from point to point; a listener on the drawing itself would make that a stop of Tab, too. */
function go(event) {
  const links = [...event.currentTarget.querySelectorAll("a")];
  const at = links.indexOf(event.target.closest("a"));
  if (at < 0) return;
  if (event.key === " ") links[at].dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  else if (event.key in KEYS) links[Math.min(links.length - 1, Math.max(0, at + KEYS[event.key]))].focus();
  else if (event.key === "Home") links[0].focus();
  else if (event.key === "End") links.at(-1).focus();
  else return;
  event.preventDefault();
}

/** Tab comes back to the point that it left. */
function stay(event) {
  for (const link of event.currentTarget.querySelectorAll("a")) {
    link.setAttribute("tabindex", link === event.target.closest("a") ? "0" : "-1");
  }
}

function floorOf({ floor, box, y }) {
  if (floor === null) return null;
  const bottom = y(floor);
  return svg("g", { class: "floor" },
    svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: Math.max(0, bottom - box.top) }),
    svg("text", { x: box.right - 4, y: box.top - 6, "text-anchor": "end" }, `noise floor: ${decibels(floor)}`));
}

function boundOf({ box, x, y }, bound, front) {
  if (bound === null) return null;
  const [wide, high] = [120, 20];
  const covered = ([left, top]) => front.filter((point) => {
    const [across, up] = [x(point.latency.relative) - left, y(worstPsnr(point)) - top];
    return across > -6 && across < wide + 6 && up > -6 && up < high + 6;
  }).length;
  const places = [box.left + 4, box.right - wide].flatMap((left) => [y(bound) - high, y(bound)].map((top) => [left, top]));
  const [left, top] = places.sort((one, other) => covered(one) - covered(other))[0]; // where it hides fewest points
  return svg("g", { class: "bound" },
    svg("line", { x1: box.left, x2: box.right, y1: y(bound), y2: y(bound) }),
    svg("text", { x: left, y: top + 14 }, `asked for: ${bound} dB`));
}

function axes(scale, study, width) {
  const { box, x, y, x0, x1, y0, y1, cut, height } = scale;
  const across = ticks(x0, x1, width / 90);
  const up = ticks(y0, Math.min(IDENTICAL, cut ?? y1), 6);
  const kind = study.latency_source;
  const label = width > 560 ? `Latency, % of native, ${latencyKind(study)}` : `Latency, % of native (${kind})`;
  return svg("g", { class: "axes" },
    across.map((value) => [
      svg("line", { x1: x(value / 100), x2: x(value / 100), y1: box.top, y2: box.bottom }),
      svg("text", { x: x(value / 100), y: box.bottom + 17, "text-anchor": "middle" }, tickText(value, across)),
    ]),
    up.map((value) => [
      svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, tickText(value, up)),
    ]),
    cut !== null && [
      svg("text", { x: box.left - 7, y: y(IDENTICAL) + 4, "text-anchor": "end" }, IDENTICAL),
      svg("path", { class: "break", d: `M${box.left - 6} ${y(cut) + 3}l12 -6M${box.left - 6} ${y(cut) - 3}l12 -6` }),
      svg("text", { x: box.left + 12, y: y(cut) - 2 }, "not to scale above"),
    ],
    svg("text", { class: "label", x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" }, label),
    svg("text", { class: "label", x: 4, y: 16 }, "Worst-prompt PSNR, dB"));
}

function staircase(front, { x, y }) {
  const corners = front.map((point, index) => {
    const [across, up] = [x(point.latency.relative), y(worstPsnr(point))];
    return index ? `H${across}V${up}` : `M${across} ${up}`;
  });
  return front.length ? svg("path", { class: "stairs", d: corners.join("") }) : null;
}

function other(trial, { x, y }) {
  const [across, up] = [x(trial.latency.relative), y(worstPsnr(trial))];
  if (trial.latency.source === "fitted") return svg("path", { class: "fitted", d: cross(across, up, 2.5) });
  return svg("circle", { cx: across, cy: up, r: 2.5 });
}

const cross = (x, y, r) => `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`;
const diamond = (x, y, r) => `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`;

function pointLink(point, { scale, study, best, chosen, tell }) {
  const { id, native } = point.policy;
  const [x, y] = [scale.x(point.latency.relative), scale.y(worstPsnr(point))];
  const mark = native ? svg("path", { class: "mark", d: diamond(x, y, 8) }) : svg("circle", { class: "mark", cx: x, cy: y, r: 6 });
  const classes = ["point", point.feasible ? "feasible" : "infeasible", id === best && "best", id === chosen && "chosen"];
  const label = `${pointText(point, study)}${id === best ? " · recommended" : ""}`;
  const say = () => tell(point);
  return svg("a", {
    href: `#/studies/${study.id}/policies/${id}`, class: classes.filter(Boolean).join(" "), "data-policy": id,
    "aria-label": label, "aria-current": id === chosen ? "true" : null, onfocus: say, onpointerenter: say,
  },
  svg("title", {}, label),
  svg("circle", { class: "target", cx: x, cy: y, r: 14 }),
  id === best && svg("circle", { class: "ring", cx: x, cy: y, r: 10.5 }),
  mark);
}

function legendOf({ study, front, others, bound, best }) {
  const fitted = others.filter((trial) => trial.latency.source === "fitted").length;
  const missed = front.filter((point) => !point.feasible).length;
  const sign = (kind, text, ...shapes) =>
    h("li", {}, svg("svg", { class: kind, width: 24, height: 18, "aria-hidden": "true" }, shapes), h("span", {}, text));
  return [
    sign("point feasible", `on the front, meets ${requirementText(study)}`, svg("circle", { class: "mark", cx: 12, cy: 9, r: 6 })),
    missed > 0 && sign("point infeasible", "on the front, misses it", svg("circle", { class: "mark", cx: 12, cy: 9, r: 6 })),
    best && sign("point feasible best", "recommended", svg("circle", { class: "ring", cx: 12, cy: 9, r: 8.2 }),
      svg("circle", { class: "mark", cx: 12, cy: 9, r: 5 })),
    front.some((point) => point.policy.native) && sign("point feasible", "native", svg("path", { class: "mark", d: diamond(12, 9, 8) })),
    others.length > fitted && sign("others", `other policies evaluated (${others.length - fitted})`,
      svg("circle", { cx: 12, cy: 9, r: 2.5 })),
    fitted > 0 && sign("others", `latency only fitted (${fitted})`, svg("path", { class: "fitted", d: cross(12, 9, 3) })),
    bound !== null && sign("bound", "PSNR asked for", svg("line", { x1: 0, x2: 24, y1: 9, y2: 9 })),
    study.noise_floor_db !== undefined && sign("floor", "above what two native runs agree in",
      svg("rect", { x: 2, y: 3, width: 20, height: 12 })),
  ];
}
