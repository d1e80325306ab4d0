// The two MP4 clips, played as one.

import { casePath } from "./api.js";
import { h } from "./dom.js";

export function clips(study, native, candidate, number) {
  const video = (policy, label) => h("video", {
    src: `${casePath(study, policy, number)}/clip`, muted: true, playsinline: true, loop: true, preload: "auto", "aria-label": label,
  });
  const both = [video(native, "baseline clip"), video(candidate, "candidate clip")];
  const [first, second] = both;
  for (const each of both) each.muted = true; // the attribute alone does not do it for elements made by scripts
  const button = h("button", { type: "button", onclick: toggle }, "Play both clips");
  const away = h("p", { class: "hint", hidden: true }, "No clips are kept of this policy and case.");
  first.addEventListener("timeupdate", () => {
    if (Math.abs(first.currentTime - second.currentTime) > 0.08) second.currentTime = first.currentTime;
  });

  function toggle() {
    if (!first.paused) {
      both.forEach((each) => each.pause());
      button.textContent = "Play both clips";
      return;
    }
    second.currentTime = first.currentTime;
    Promise.all(both.map((each) => each.play())).then(
      () => { button.textContent = "Pause both clips"; },
      () => { away.hidden = false; },
    );
  }

  return h("details", { class: "clips" },
    h("summary", {}, "Clips in motion"),
    h("div", { class: "pictures" },
      h("figure", {}, h("figcaption", {}, "Baseline (native)"), first),
      h("figure", {}, h("figcaption", {}, "Candidate"), second)),
    button, away, h("p", { class: "hint" }, "The clips are H.264, which loses detail of its own; the frames above are exact."));
}
