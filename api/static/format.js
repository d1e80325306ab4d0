// Figures as people read them, always with what kind of figure it is.

export const IDENTICAL = 100; // dB, by which the service says that frames are the same

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export const decibels = (value) => (value >= IDENTICAL ? "identical" : `${value.toFixed(2)} dB`);

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

export function moment(text) {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export const worstPsnr = (policy) => Math.min(...policy.prompts.map((each) => each.metrics.psnr_db));

/** What a study's latencies are: "measured on DEVICE" or "projected from profile NAME". */
export function latencyKind(study) {
  if (study.latency_source === "measured") return `measured on ${study.environment.device || "a device not recorded"}`;
  return `projected from profile ${study.latency_profile || "not recorded"}`;
}

/** One policy's latency with its own source; `study` says from which profile. */
export function latencySource(latency, study) {
  if (latency.source === "projected") return `projected from profile ${study.latency_profile || "not recorded"}`;
  if (latency.source === "fitted") return "fitted, not measured";
  return `measured, ±${percent(latency.spread, 2)} over ${count(latency.repeats, "repeat")}`;
}

export function workloadText(work) {
  const guidance = work.guidance === null ? "" : `, guidance ${work.guidance}`;
  return `${work.task}, ${work.width}×${work.height}, ${count(work.frames, "frame")}, ${count(work.steps, "step")}${guidance}`;
}

/** The bounds, and over which prompts they hold; `asked` is a study or an answer. */
export function requirementText({ requirement, aggregate }) {
  return `${requirement.join(", ")} (${aggregate === "worst" ? "worst prompt" : `${aggregate} over prompts`})`;
}

const OPERATORS = {
  real: "real operator",
  emulated: "operator emulated, not run on an NPU",
  replayed: "replayed from a recorded landscape",
};

export function engineText(environment) {
  const operator = OPERATORS[environment.operator] || `operator ${environment.operator || "not recorded"}`;
  const device = environment.device === "none" ? "" : ` on ${environment.device || "a device not recorded"}`;
  return `${environment.engine || "engine not recorded"}${device}; ${operator}`;
}

const or = (text) => (text === "" ? "none" : text);

export function policyText(policy) {
  if (policy.native) return "native";
  return `${policy.dtype}, native steps ${or(policy.skip_steps)}, native layers ${or(policy.skip_layers)}`;
}

export function holdoutText(met) {
  if (met === undefined) return "not checked on held-out prompts";
  return met ? "passed on held-out prompts" : "failed on held-out prompts";
}
