// The list of studies, newest first.

import { getJson, orWithout, ROOT } from "./api.js";
import { fill, h, row, table } from "./dom.js";
import { engineText, latencyKind, moment, requirementText, workloadText } from "./format.js";

const STATES = ["running", "finished", "interrupted", "failed", "unproven"];
const OF_JOBS = ["queued", "cancelled", "failed"]; // in which no worker may have opened a study yet
const COLUMNS = [
  ["Study", "name"], ["State", "text"], ["Measured", "number"], ["Asked for", "text"], ["Latency", "text"],
  ["Workload", "text"], ["Engine", "text"], ["Last figure", "text"],
];

export async function showStudies(place, { query, signal }) {
  const [state, model] = [query.get("state") || "", query.get("model") || ""];
  const asked = new URLSearchParams({ limit: 20, ...(state && { state }), ...(model && { model }) });
  const [page, asking] = await Promise.all([
    !state || STATES.includes(state) ? getJson(`${ROOT}/studies?${asked}`, signal) : { studies: [] },
    !state || OF_JOBS.includes(state) ? jobs(state || "queued", signal) : [],
  ]);
  const opened = new Set(page.studies.map((study) => study.id));
  const waiting = asking.filter((job) => !opened.has(job.id) && (!model || job.model === model));
  const list = table("Studies", COLUMNS, waiting.map(jobCells));
  list.classList.add("cards");
  const more = h("button", { type: "button" }, "Show more");
  const add = (found) => {
    list.querySelector("tbody").append(...found.studies.map((study) => row(COLUMNS, cells(study))));
    more.hidden = !found.next;
    more.onclick = async () => {
      more.disabled = true;
      add(await getJson(found.next, signal));
      more.disabled = false;
    };
  };
  add(page);
  fill(place,
    h("h1", { tabindex: -1 }, "Studies"),
    filters(state, model),
    page.studies.length + waiting.length ? list : nothing(state || model),
    more);
  return { title: "Studies" };
}

const jobs = async (state, signal) =>
  (await orWithout(getJson(`${ROOT}/jobs?state=${state}&limit=100`, signal), { jobs: [] })).jobs;

function nothing(filtered) {
  if (filtered) return h("p", { class: "hint" }, "No study is like that.");
  return h("p", { class: "hint" }, "No study is stored yet. ", h("code", {}, "fa-tune run --model MODEL --prompt TEXT"), " makes one.");
}

function filters(state, model) {
  const filter = (event) => {
    event.preventDefault();
    const given = [...new FormData(event.target)].filter(([, value]) => value);
    location.hash = given.length ? `#/?${new URLSearchParams(given)}` : "#/";
  };
  return h("form", { class: "controls", onsubmit: filter },
    h("span", { class: "pair" }, h("label", { for: "state" }, "State"), h("select", { id: "state", name: "state" },
      h("option", { value: "" }, "any"),
      [...new Set([...STATES, ...OF_JOBS])].map((each) => h("option", { value: each, selected: each === state }, each)))),
    h("span", { class: "pair" }, h("label", { for: "model" }, "Model"), h("input", {
      id: "model", name: "model", value: model, autocomplete: "off", spellcheck: "false", placeholder: "any",
    })),
    h("button", {}, "Filter"));
}

export const stateBadge = (state) => h("span", { class: `badge state-${state}` }, state);

function cells(study) {
  return [
    h("a", { href: `#/studies/${study.id}` }, study.study),
    stateBadge(study.state),
    `${study.evaluated} of ${study.target}`,
    requirementText(study),
    latencyKind(study),
    [h("span", { class: "model" }, study.workload.model), h("br"), workloadText(study.workload)],
    engineText(study.environment),
    moment(study.updated),
  ];
}

function jobCells(job) {
  return [
    h("a", { href: `#/studies/${job.id}` }, job.study), stateBadge(job.state),
    "–", "–", "–", job.model || "–", "–", job.created ? moment(job.created) : "–",
  ];
}
