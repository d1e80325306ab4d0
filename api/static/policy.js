// One policy: its figures, which cells it quantizes, its metrics by prompt, its pictures and its configuration.

import { studyPath } from "./api.js";
import { compare } from "./compare.js";
import { facts, h, table } from "./dom.js";
import { decibels, holdoutText, latencySource, percent, policyText, worstPsnr } from "./format.js";
import { strip } from "./strip.js";
import { yaml } from "./yaml.js";

/** The card beside the plot. `best` is the id of the recommended policy. */
export function policyCard(study, point, best) {
  const { policy, latency } = point;
  const heading = h("h2", { tabindex: -1, id: "policy-heading" }, policyText(policy));
  if (point.failed) return [heading, h("p", { class: "notice" }, `Failed: ${point.reason}`)];
  const verdict = point.feasible === undefined ? null : point.feasible;
  return [
    heading,
    h("p", { class: "badges" },
      policy.id === best && h("span", { class: "badge good" }, "recommended"),
      verdict !== null && h("span", { class: verdict ? "badge good" : "badge bad" },
        `${verdict ? "meets" : "misses"} ${study.requirement.join(", ")}`),
      h("span", { class: "badge" }, latency.source)),
    facts([
      ["Latency", `${percent(latency.relative, 2)} of native`],
      ["Gain", `${percent(latency.gain, 2)}, ${latencySource(latency, study)}`],
      ["Worst-prompt PSNR", decibels(worstPsnr(point))],
      ["SSIM", `${point.ssim.toFixed(4)} (${point.aggregate})`],
      ["Held-out prompts", holdoutText(point.holdout_met ?? heldOut(point))],
      ["Attention calls", coverage(point.coverage, policy)],
    ]),
    h("h3", {}, "Steps and layers"),
    strip(policy, study.environment),
  ];
}

/** Of a policy that is not on the front it is only known whether held-out prompts were run. */
function heldOut(point) {
  return point.holdout_prompts.length ? null : undefined;
}

function coverage({ proven, quantized_calls: quantized, native_calls: native }, policy) {
  const counted = `${quantized} quantized and ${native} native counted`;
  if (policy.native) return counted;
  return proven ? `${counted}: as the policy says` : `${counted}: not proven`;
}

/** What stands below the plot. `native` is the id of the native policy. */
export function policyDetails(study, point, native, signal) {
  if (point.failed) return [];
  const exports = Object.fromEntries(
    ["deploy", "stage-args", "flags"].map((format) =>
      [format, `${studyPath(study.id)}/export?format=${format}&policy=${point.policy.id}`]));
  return [
    h("section", {}, h("h2", {}, "Pictures"), compare(study, point, native, signal)),
    h("section", {}, h("h2", {}, "Quality by prompt"), quality(point)),
    h("section", {}, h("h2", {}, "Configuration"),
      point.policy.native ? h("p", { class: "hint" }, "The native policy needs none.") : yaml(exports, signal)),
  ];
}

const NAMES = { psnr_db: "PSNR", ssim: "SSIM", worst_frame_psnr_db: "worst frame", max_abs: "largest error", mae: "mean error" };

function quality(point) {
  const known = Object.keys(NAMES).filter((name) => point.prompts[0] && name in point.prompts[0].metrics);
  const rows = [...point.prompts.map((each) => [each, "searched"]), ...point.holdout_prompts.map((each) => [each, "held out"])];
  return table("Quality by prompt, against the native baseline",
    [["Prompt", "prose"], ["Seed", "number"], ["", "text"], ...known.map((name) => [NAMES[name], "number"])],
    rows.map(([each, kind]) => [each.prompt, each.seed, kind, ...known.map((name) => metric(name, each.metrics[name]))]));
}

function metric(name, value) {
  if (value === undefined) return "–";
  if (name.endsWith("psnr_db")) return decibels(value);
  return name === "max_abs" ? value.toFixed(0) : value.toFixed(name === "ssim" ? 4 : 2);
}
