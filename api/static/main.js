// Which view the address asks for, the focus and the title with it, and the session's end.

import { Problem } from "./api.js";
import { fill, h } from "./dom.js";
import { showRecommend } from "./recommend.js";
import { showStudies } from "./studies.js";
import { showStudy } from "./study.js";

const ROUTES = [
  ["studies", /^\/$/, showStudies],
  ["study", /^\/studies\/(?<id>[0-9a-f]{16})(?:\/policies\/(?<policy>[0-9a-f]{64}))?$/, showStudy],
  ["recommend", /^\/recommend$/, showRecommend],
];
const RETURN = "fa-tune-return"; // where a login leads back to

const main = document.getElementById("main");
let current = null;
let leaving = new AbortController();

async function go(first) {
  const [path, question = ""] = (location.hash.slice(1) || "/").split("?");
  const [name, pattern, show] = ROUTES.find(([, each]) => each.test(path)) || ["none", /^/, showNothing];
  const parameters = { ...pattern.exec(path).groups, query: new URLSearchParams(question) };
  markPlace(name);
  const followed = first === true ? null : current?.follow?.(name, parameters);
  if (followed) {
    document.title = titled(followed.title);
    return;
  }
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  current = null;
  main.setAttribute("aria-busy", "true");
  const place = h("div", { class: "view" });
  try {
    const view = await show(place, { ...parameters, signal });
    if (signal.aborted) return;
    current = view;
    document.title = titled(view.title);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem)) console.error(error);
    document.title = titled("Not shown");
    fill(place,
      h("h1", { tabindex: -1 }, error.status === 404 ? "Not found" : "This cannot be shown"),
      h("p", { class: "notice", role: "alert" }, error instanceof Problem ? error.message : "The page failed; reload it."));
  }
  fill(main, place);
  main.removeAttribute("aria-busy");
  if (first !== true) {
    (place.querySelector(".answer h2") || place.querySelector("h1")).focus();
  }
}

const titled = (title) => `${title} · fa-tune`;

async function showNothing(place) {
  fill(place,
    h("h1", { tabindex: -1 }, "Not found"),
    h("p", {}, "There is no such place on this page. ", h("a", { href: "#/" }, "The studies")));
  return { title: "Not found" };
}

function markPlace(name) {
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === (name === "recommend" ? "#/recommend" : "#/");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault(); // nobody waits for an answer to a view that was left
});
document.addEventListener("session-ended", () => { document.getElementById("session").hidden = false; });
document.getElementById("login").addEventListener("click", () => {
  sessionStorage.setItem(RETURN, location.hash);
  location.reload(); // which the service answers with the form
});
document.getElementById("logout").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST" });
  sessionStorage.removeItem(RETURN);
  location.replace("/");
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  main.focus();
});

const back = sessionStorage.getItem(RETURN);
sessionStorage.removeItem(RETURN);
if (back && !location.hash) history.replaceState(null, "", back);
window.addEventListener("hashchange", go);
go(true);
