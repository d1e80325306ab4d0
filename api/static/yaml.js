// A policy as configuration, as the export route gives it, with a button that copies it.

import { getText, Problem } from "./api.js";
import { h } from "./dom.js";

const FORMATS = { deploy: "deploy YAML (vLLM-Omni 0.30)", "stage-args": "legacy stage_args YAML", flags: "command-line flags" };

/** `links` are paths of exports by format. */
export function yaml(links, signal) {
  const code = h("code");
  const text = h("pre", { id: "export", tabindex: 0, "aria-label": "exported configuration" }, code);
  const said = h("span", { role: "status" });
  const copy = h("button", { type: "button", class: "primary", onclick: copied }, "Copy");
  const save = h("a", { class: "button", download: true }, "Download");
  const chooser = h("select", { id: "format", onchange: show },
    Object.keys(links).map((format) => h("option", { value: format }, FORMATS[format] || format)));

  async function show() {
    said.textContent = "";
    save.href = links[chooser.value];
    try {
      code.textContent = await getText(links[chooser.value], signal);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      code.textContent = "";
      said.textContent = error.message;
    }
    copy.disabled = save.hidden = !code.textContent;
  }

  async function copied() {
    said.textContent = (await copyText(code)) ? "Copied." : "The browser does not let this page copy; the text is selected.";
  }

  show();
  return h("div", { class: "yaml" },
    h("div", { class: "controls" }, h("label", { for: "format" }, "As"), chooser, copy, save, said), text);
}

async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent); // only where the page came by https or from this machine
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
