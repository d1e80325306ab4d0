// A form that asks for a recommendation. What was asked stands in the address, so that an answer can be shared.

import { getJson, orWithout, Problem, ROOT } from "./api.js";
import { facts, fill, h } from "./dom.js";
import { decibels, engineText, moment, percent, requirementText, workloadText } from "./format.js";
import { strip } from "./strip.js";
import { yaml } from "./yaml.js";

const number = { type: "number", min: 1, step: 1, inputmode: "numeric" };
const FIELDS = [
  ["min_psnr", "Least PSNR, dB", { type: "number", min: 0, max: 100, step: "any", inputmode: "decimal" }],
  ["quality", "Preset of bounds", ["recommended", "good", "strict"]],
  ["steps", "Steps", number],
  ["dtype", "Dtype", ["fp8", "mxfp8", "mxfp4"]],
  ["device", "Device", { placeholder: "such as A5" }],
  ["latency_source", "Latency", ["measured", "projected"]],
];
const FURTHER = [
  ["constraint", "Further bounds", { placeholder: "ssim>=0.95, mae<=3" }],
  ["aggregate", "Over prompts", { placeholder: "worst, mean, p10", pattern: "worst|mean|p[0-9]{1,2}" }],
  ["height", "Height", number], ["width", "Width", number], ["frames", "Frames", number],
  ["task", "Task", ["t2v", "i2v"]],
  ["guided", "Guidance", ["true", "false"]],
  ["engine", "Engine", {}],
  ["engine_version", "Engine version", { placeholder: "0.30" }],
  ["revision", "Revision", {}],
];

const HELD_OUT = { passed: "good", failed: "bad" };

export async function showRecommend(place, { query, signal }) {
  const answer = h("section", { class: "answer", "aria-label": "Answer" });
  fill(place, h("h1", { tabindex: -1 }, "Recommend"), form(query, await models(signal)), answer);
  if (query.has("model")) await ask(answer, query, signal);
  return { title: "Recommend" };
}

async function models(signal) {
  const page = await getJson(`${ROOT}/studies?limit=100`, signal);
  return [...new Set(page.studies.map((study) => study.workload.model))];
}

function form(query, known) {
  const asked = (event) => {
    event.preventDefault();
    const given = [...new FormData(event.target)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value);
    location.hash = `#/recommend?${new URLSearchParams(given)}`;
  };
  const further = FURTHER.some(([name]) => query.has(name));
  return h("form", { class: "ask", onsubmit: asked },
    h("div", { class: "field model" },
      h("label", { for: "ask-model" }, "Model (hub id, or a local model's absolute path)"),
      h("input", {
        id: "ask-model", name: "model", required: true, value: query.get("model") || "", list: "models",
        autocomplete: "off", spellcheck: "false",
      }),
      h("datalist", { id: "models" }, known.map((model) => h("option", { value: model })))),
    h("div", { class: "fields" }, FIELDS.map((each) => field(query, each))),
    h("details", { open: further },
      h("summary", {}, "Further filters"),
      h("div", { class: "fields" }, FURTHER.map((each) => field(query, each)))),
    h("p", { class: "controls" },
      h("label", {}, h("input", {
        type: "checkbox", name: "allow_nearest", value: "true", checked: query.get("allow_nearest") === "true",
      }), " let the nearest study answer where none matches"),
      h("button", { class: "primary" }, "Ask")));
}

function field(query, [name, label, kind]) {
  const [id, value] = [`ask-${name}`, query.get(name) || ""];
  const input = Array.isArray(kind)
    ? h("select", { id, name }, h("option", { value: "" }, "any"),
      kind.map((each) => h("option", { value: each, selected: each === value }, each)))
    : h("input", { id, name, value, autocomplete: "off", spellcheck: "false", ...kind });
  return h("div", { class: "field" }, h("label", { for: id }, label), input);
}

async function ask(place, query, signal) {
  const asked = new URLSearchParams([...query].filter(([name]) => name !== "constraint"));
  for (const bound of (query.get("constraint") || "").split(",")) {
    if (bound.trim()) asked.append("constraint", bound.trim());
  }
  fill(place, h("p", { class: "hint" }, "Asking…"));
  try {
    const found = await getJson(`${ROOT}/recommendations?${asked}`, signal);
    const study = await orWithout(getJson(found.links.study, signal), null);
    fill(place, answered(found, study, signal));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    fill(place, refused(error));
  }
}

function answered(found, study, signal) {
  const { policy, latency } = found;
  const profile = study?.latency_profile ? ` from profile ${study.latency_profile}` : "";
  return [
    h("h2", { tabindex: -1 }, "Answer"),
    h("p", { class: "badges" },
      found.verified
        ? h("span", { class: "badge good" }, "verified: a study matches")
        : h("span", { class: "badge bad" }, "unverified: the nearest study answers"),
      h("span", { class: "badge" }, latency.source),
      h("span", { class: `badge ${HELD_OUT[found.holdout] || ""}` }, `held-out prompts: ${found.holdout}`)),
    differences(found.differences),
    h("div", { class: "two" },
      h("div", {},
        facts([
          ["diffusion_kv_cache_dtype", h("code", {}, policy.dtype)],
          ["diffusion_kv_cache_skip_steps", h("code", {}, `"${policy.skip_steps}"`)],
          ["diffusion_kv_cache_skip_layers", h("code", {}, `"${policy.skip_layers}"`)],
          ["Gain", `${percent(latency.gain, 2)}, ${latency.source}${profile}`],
          ["Worst-prompt PSNR", decibels(found.worst_psnr_db)],
          ["Asked for", requirementText(found)],
          ["Noise floor", decibels(found.noise_floor_db)],
          ["Holds for", workloadText(found.holds_for)],
          ["Engine", engineText(found.environment)],
          ["Study", h("a", { href: `#/studies/${found.study_id}` }, found.study)],
          ["Measured", moment(found.measured)],
        ]),
        h("p", {}, h("a", { class: "button", href: `#/studies/${found.study_id}/policies/${policy.id}` },
          "Look at its pictures and evidence")),
        found.notes.length > 0 && [
          h("h3", {}, "What these figures do not prove"),
          h("ul", {}, found.notes.map((note) => h("li", {}, note))),
        ]),
      h("div", {},
        h("h3", {}, "Steps and layers"), strip(policy, found.environment),
        h("h3", {}, "Configuration"), yaml(found.links.exports, signal))),
  ];
}

function differences(found) {
  return found.length > 0 && h("ul", { class: "notice" }, found.map(differs));
}

const differs = ({ field: name, asked, stored }) => h("li", {}, `${name}: asked ${asked}, the study has ${stored}`);

function refused(problem) {
  const near = problem.nearest;
  return [
    h("h2", { tabindex: -1 }, problem.status === 404 ? "No answer" : "It could not be asked"),
    h("p", { class: "notice", role: "alert" }, problem.message),
    near.length > 0 && h("h3", {}, "The nearest studies"),
    ...near.map((study) => h("article", { class: "near" },
      h("h4", {}, h("a", { href: `#/studies/${study.study_id}` }, study.study)),
      h("p", { class: "model" }, study.model),
      h("ul", {}, study.differences.map(differs)))),
  ];
}
