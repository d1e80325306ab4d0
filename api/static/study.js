// One study: what it is, its Pareto plot and the policy that is looked at, its sensitivities and all that was evaluated.

import { getAll, getJson, orWithout, studyPath } from "./api.js";
import { facts, fill, h, table } from "./dom.js";
import {
  count, decibels, engineText, latencyKind, moment, percent, policyText, requirementText,
  workloadText, worstPsnr,
} from "./format.js";
import { heat } from "./heat.js";
import { ALIVE, live, standing } from "./live.js";
import { plot } from "./plot.js";
import { policyCard, policyDetails } from "./policy.js";
import { stateBadge } from "./studies.js";

/** Shows the study `id` with the policy `policy`, and follows to other policies of it without a new start. */
export async function showStudy(place, { id, policy, signal }) {
  const study = await getJson(studyPath(id), signal);
  if (!study.workload) return waiting(place, study, signal);
  const view = new StudyView(id, signal);
  await view.load();
  fill(place, view.parts());
  view.choose(policy, false);
  return {
    title: study.study,
    follow(name, parameters) {
      if (name !== "study" || parameters.id !== id) return null;
      view.choose(parameters.policy, true);
      return { title: study.study };
    },
  };
}

/** A study that was asked for, and that no worker has opened yet. */
function waiting(place, study, signal) {
  const again = async () => {
    const newer = await getJson(studyPath(study.id), signal);
    if (newer.workload || newer.state !== study.state) window.dispatchEvent(new HashChangeEvent("hashchange"));
  };
  const progress = ALIVE.has(study.state) ? live(study, again, signal) : null;
  fill(place,
    h("h1", { tabindex: -1 }, study.study, " ", stateBadge(study.state)),
    h("p", { class: "hint" }, progress ? "No worker has begun it yet." : "No worker has begun it."),
    facts([["Model", study.job.model], ["Reason", study.reason || null], ["Asked for", moment(study.job.created)]]),
    progress && progress.element);
  return { title: study.study };
}

class StudyView {
  constructor(id, signal) {
    Object.assign(this, { id, signal, chosen: undefined });
    this.head = h("div");
    this.card = h("section", { class: "card", "aria-label": "Chosen policy" });
    this.details = h("div", { class: "details" });
    this.front = h("div");
    this.sensitivity = h("div");
    this.all = h("div");
  }

  async load() {
    const [{ job }, found, trials, sensitivity] = await Promise.all([
      getJson(studyPath(this.id), this.signal),
      getJson(`${studyPath(this.id)}/front`, this.signal),
      getAll(`${studyPath(this.id)}/trials`, "trials", this.signal),
      orWithout(getJson(`${studyPath(this.id)}/sensitivity`, this.signal), null),
    ]);
    const study = { ...found, ...standing({ ...found, job }) };
    Object.assign(this, { study, trials });
    this.native = trials.find((trial) => trial.policy.native)?.policy.id;
    fill(this.head, head(study));
    fill(this.front, frontTable(study));
    fill(this.sensitivity, sensitivity
      ? heat(sensitivity)
      : h("p", { class: "hint" }, "Too few policies were measured to say what each step and layer costs."));
    fill(this.all, allTable(study, trials));
    if (this.plot) this.plot.show(study, trials);
    else this.plot = plot(study, trials);
    if (this.live) this.live.tell(study);
    else if (ALIVE.has(study.state)) this.live = live(study, () => this.reload(), this.signal);
    if (!ALIVE.has(study.state)) this.live?.element.remove();
  }

  async reload() {
    await this.load().catch((error) => { if (error.name !== "AbortError") console.warn(error.message); });
    if (this.chosen === undefined) this.choose(undefined, false);
  }

  parts() {
    return [
      this.head,
      this.live?.element,
      h("div", { class: "two wide-left" }, h("section", {}, h("h2", {}, "Pareto front"), this.plot.element), this.card),
      this.details,
      h("section", {}, h("h2", {}, "On the front"), this.front),
      h("section", {}, h("h2", {}, "What each step and layer costs"), this.sensitivity),
      h("section", {}, this.all),
    ];
  }

  /** `moved`: a person came here from another policy of the study, and the focus goes along. */
  choose(policy, moved) {
    const before = this.chosen;
    this.chosen = policy;
    this.plot.choose(policy ?? null);
    this.choice?.abort();
    this.choice = new AbortController();
    const signal = AbortSignal.any([this.signal, this.choice.signal]);
    if (policy === undefined) {
      fill(this.card, this.invitation());
      fill(this.details);
      if (moved) this.plot.focus(before);
      return;
    }
    const best = this.study.recommended;
    const found = this.study.front.find((point) => point.policy.id === policy)
      ?? (best?.policy.id === policy ? { ...best, feasible: true } : this.trials.find((trial) => trial.policy.id === policy));
    if (!found) {
      fill(this.card, h("h2", { tabindex: -1 }, "No such policy"), h("p", {}, "This study has no policy of that id."));
      fill(this.details);
    } else {
      fill(this.card, policyCard(this.study, found, best?.policy.id));
      fill(this.details, policyDetails(this.study, found, this.native, signal));
    }
    if (moved) this.card.querySelector("h2").focus();
  }

  invitation() {
    const best = this.study.recommended;
    if (!best) {
      return [
        h("h2", {}, "No recommendation"),
        h("p", {}, `No measured policy meets ${this.study.requirement.join(", ")} with a gain beyond noise, and on `,
          "held-out prompts where it was checked. Choose a point to look at what there is."),
      ];
    }
    return [
      h("h2", {}, "Recommended"),
      facts([
        ["Policy", policyText(best.policy)],
        ["Gain", `${percent(best.latency.gain, 2)} (${best.latency.source})`],
        ["Worst-prompt PSNR", decibels(worstPsnr(best))],
      ]),
      h("p", {}, h("a", { class: "button primary", href: `#/studies/${this.id}/policies/${best.policy.id}` }, "Look at it")),
      h("p", { class: "hint" }, "Or choose any point of the plot."),
    ];
  }
}

function head(study) {
  const { environment: where, workload: work } = study;
  return [
    h("h1", { tabindex: -1 }, study.study, " ", stateBadge(study.state)),
    facts([
      ["State", study.reason ? `${study.state} (${study.reason})` : study.state],
      ["Model", work.model],
      ["Workload", workloadText(work)],
      ["Prompts", `${count(work.prompts.length * work.seeds.length, "case")} searched, ${work.holdout.length} held out`],
      ["Engine", engineText(where)],
      ["Latency", h("strong", {}, latencyKind(study))],
      ["Asked for", requirementText(study)],
      ["Noise floor", study.noise_floor_db === undefined ? "not measured yet" : decibels(study.noise_floor_db)],
      ["Measured", [
        `${study.evaluated} of ${count(study.target, "policy", "policies")}, `,
        `${study.generation_equivalents.toFixed(1)} generations of every prompt`,
      ]],
      ["Last figure", moment(study.updated)],
    ]),
    study.front_untimed && h("p", { class: "notice" }, count(study.front_untimed, "policy", "policies"),
      " may belong on the front by a latency that is only fitted; what is only fitted is not drawn on it."),
  ];
}

const COLUMNS = [
  ["Policy", "prose"], ["Gain", "number"], ["Worst PSNR", "number"], ["SSIM", "number"], ["Quantized", "number"],
  ["Meets", "text"], ["Held out", "text"], ["From", "text"],
];

function link(study, { policy, failed }, best) {
  const text = policy.native ? "native" : `${policy.dtype} ${policy.skip_steps || "–"} / ${policy.skip_layers || "–"}`;
  return [
    h("a", { href: `#/studies/${study.id}/policies/${policy.id}` }, text),
    policy.id === best && [" ", h("span", { class: "badge good" }, "recommended")],
    failed && [" ", h("span", { class: "badge bad" }, "failed")],
  ];
}

function figures(study, point) {
  return [
    `${percent(point.latency.gain, 2)} (${point.latency.source})`, decibels(worstPsnr(point)), point.ssim.toFixed(4),
    percent(point.policy.share_quantized, 0),
  ];
}

const HELD_OUT = { true: "passed", false: "failed" };

function frontTable(study) {
  const best = study.recommended?.policy.id;
  return table("The front, fastest first; a policy is written as native steps / native layers", COLUMNS, study.front.map((point) => [
    link(study, point, best), ...figures(study, point), point.feasible ? "yes" : "no",
    HELD_OUT[point.holdout_met] ?? "not checked", point.origin,
  ]));
}

function allTable(study, trials) {
  const columns = [["Number", "number"], ...COLUMNS.slice(0, 5), COLUMNS.at(-1)];
  return h("details", {},
    h("summary", {}, `All ${count(trials.length, "policy", "policies")} evaluated`),
    table("Every policy evaluated, in order", columns, trials.map((trial) => [
      trial.number, link(study, trial),
      ...(trial.failed ? ["–", "–", "–", "–"] : figures(study, trial)), trial.origin,
    ])));
}
