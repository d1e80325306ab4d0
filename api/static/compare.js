// Baseline and candidate, frame by frame without loss, and where they differ; and both clips at once.

import { casePath, getPicture, orWithout } from "./api.js";
import { fill, h } from "./dom.js";
import { difference, drawDifference, drawWipe, pixelsOf, put } from "./pixels.js";
import { percent } from "./format.js";
import { clips } from "./clips.js";

const KEPT = 24; // pictures that are held for stepping back and forth

/** `native` is the id of the native policy; frames of it are the baseline's. `signal` ends with the view. */
export function compare(study, policy, native, signal) {
  if (study.environment.operator === "replayed") {
    return h("p", { class: "hint" }, "This study replays a recorded landscape: no frames were generated, so there are none to compare.");
  }
  if (policy.policy.native) {
    return h("p", { class: "hint" }, "This is the baseline itself; choose another policy to compare it with.");
  }
  return viewer(study, policy, native, signal);
}

function viewer(study, policy, native, signal) {
  const frames = study.workload.frames;
  const held = new Map();
  const picture = (id, number, index) => {
    const path = `${casePath(study.id, id, number)}/frames/${index}`;
    if (!held.has(path)) {
      if (held.size >= KEPT) held.delete(held.keys().next().value);
      held.set(path, orWithout(getPicture(path, signal).then(pixelsOf), null).catch((error) => {
        held.delete(path);
        throw error;
      }));
    }
    return held.get(path);
  };

  const chooser = h("select", { id: "case", onchange: () => show(true) },
    policy.prompts.map((each, index) => h("option", { value: index }, `${each.prompt} (seed ${each.seed})`)));
  const scrubber = h("input", { id: "frame", type: "range", min: 0, max: frames - 1, value: 0, step: 1, oninput: () => show() });
  const wipe = h("input", { id: "wipe", type: "range", min: 0, max: 100, value: 50, step: 1, oninput: () => redraw() });
  const amplify = h("select", { id: "amplify", onchange: () => redraw() },
    [1, 2, 4, 8, 16, 32].map((factor) => h("option", { value: factor, selected: factor === 8 }, `×${factor}`)));
  const at = h("output", { for: "frame" });
  const said = h("p", { class: "said", "aria-live": "polite", id: "difference-said" });
  const canvas = (name, label) => h("canvas", { id: name, role: "img", "aria-label": label, width: 16, height: 16 });
  const wiped = canvas("wiped", "baseline left of the slider, candidate right of it");
  const [left, right] = [canvas("baseline", "baseline frame"), canvas("candidate", "candidate frame")];
  const apart = canvas("difference", "difference map");
  const moving = h("div");
  const stage = h("div", { class: "stage" },
    h("div", { class: "pictures" },
      h("figure", {}, h("figcaption", {}, "Baseline (native)"), left),
      h("figure", {}, h("figcaption", {}, "Candidate"), right),
      h("figure", {},
        h("figcaption", {}, h("label", { for: "wipe" }, "Wipe: baseline | candidate")), wiped, wipe),
      h("figure", {},
        h("figcaption", {}, h("label", { for: "amplify" }, "Difference map, amplified "), amplify), apart, said)),
    moving);
  const missing = h("p", { class: "hint", hidden: true }, 
    "No frames are kept of this policy and case: they are kept of the baseline and of the policies on the front, ",
    "as far as the quota goes.");
  const step = (by) => () => {
    scrubber.value = Number(scrubber.value) + by;
    show();
  };
  const controls = h("div", { class: "controls" },
    h("label", { for: "case" }, "Prompt"), chooser,
    h("label", { for: "frame" }, "Frame"),
    h("span", { class: "scrub" },
      h("button", { type: "button", onclick: step(-1), "aria-label": "previous frame" }, "‹"), scrubber,
      h("button", { type: "button", onclick: step(1), "aria-label": "next frame" }, "›"), at));

  let pair = null;
  let asked = 0;

  function redraw() {
    if (!pair) return;
    drawWipe(wiped, ...pair, Number(wipe.value) / 100);
    drawDifference(apart, ...pair, Number(amplify.value));
  }

  async function show(otherCase = false) {
    const turn = (asked += 1);
    const [number, index] = [Number(chooser.value), Number(scrubber.value)];
    at.textContent = `${index + 1} of ${frames}`;
    if (otherCase) fill(moving, clips(study.id, native, policy.policy.id, number));
    let found;
    try {
      found = await Promise.all([picture(native, number, index), picture(policy.policy.id, number, index)]);
    } catch (error) {
      if (error.name !== "AbortError" && turn === asked) said.textContent = error.message;
      return;
    }
    if (turn !== asked) return;
    pair = found.every(Boolean) ? found : null;
    stage.hidden = !pair;
    missing.hidden = Boolean(pair);
    if (!pair) return;
    put(left, pair[0]);
    put(right, pair[1]);
    const { largest, share } = difference(...pair);
    said.textContent = largest === 0
      ? "Every pixel of this frame is the same."
      : `Largest difference: ${largest} of 255 grey levels; ${percent(share)} of the pixels differ.`;
    Object.assign(stage.dataset, { frame: index, case: number }); // what is shown now
    redraw();
  }

  show(true);
  return h("div", { class: "compare" }, controls, missing, stage);
}
