// A study while it runs: the service's events, or the front asked for again and again where there are none.

import { studyPath } from "./api.js";
import { h } from "./dom.js";
import { count } from "./format.js";

export const ALIVE = new Set(["running", "queued", "cancelling"]);
const EVERY = 5000; // ms between questions, and between two answers to events

/** The state and reason that count: those of the job where there is one, as it knows of waiting and of being cancelled. */
export function standing({ state, reason, job }) {
  return job && state !== "unproven" ? { state: job.state, reason: job.reason } : { state, reason };
}

/** A line of progress that follows the study until it ends or `signal` does; `changed()` is called when there is more to
 *  draw, at most every few seconds, and once when the study has ended. */
export function live(study, changed, signal) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "policies measured" });
  const line = h("p", { "aria-live": "polite" });
  const element = h("section", { class: "live" }, h("h2", {}, "Progress"), bar, line);
  tell(study);
  follow(study.id, { tell, changed: calmly(changed, signal), ended: changed }, signal);
  return { element, tell };

  function tell({ state, reason, evaluated, target, front }) {
    const known = Boolean(target);
    bar.max = known ? target : 1;
    if (known) bar.value = Math.min(evaluated ?? 0, target);
    else bar.removeAttribute("value");
    const points = Array.isArray(front) ? front.length : front;
    line.textContent = [
      state + (reason ? ` (${reason})` : ""),
      known && `${evaluated ?? 0} of ${count(target, "policy", "policies")} measured`,
      points !== undefined && `${points} on the front`,
    ].filter(Boolean).join(" · ");
  }
}

function follow(id, { tell, changed, ended }, signal) {
  const source = new EventSource(`${studyPath(id)}/events`);
  let timer = null;
  const stop = () => {
    source.close();
    clearInterval(timer);
  };
  signal.addEventListener("abort", stop);
  source.addEventListener("progress", (event) => {
    tell(JSON.parse(event.data));
    changed();
  });
  source.addEventListener("front", changed);
  source.addEventListener("end", () => {
    stop();
    ended();
  });
  source.addEventListener("error", () => {
    // while it is still connecting, the browser tries again by itself
    if (source.readyState === EventSource.CLOSED && timer === null && !signal.aborted) timer = setInterval(changed, EVERY);
  });
}

/** The same, but at most every few seconds, and the last call is never lost. */
function calmly(act, signal) {
  let waiting = false;
  let last = Date.now();
  return () => {
    if (waiting || signal.aborted) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      last = Date.now();
      if (!signal.aborted) act();
    }, Math.max(0, last + EVERY - Date.now()));
  };
}
