// Elements from values. Text goes in as text nodes only, so a study may be called `<script>`.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. An attribute that is null or false is left out, one that begins with "on" is a listener; children
 *  are nodes, lists of them, or values shown as text. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `h`, an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return fill(element, children);
}

/** Gives the element these children instead of those it has; null, undefined and false are none. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Terms and what they are, as a description list; entries whose value is null are left out. */
export function facts(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, known.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

/** A table that scrolls by itself where it is wider than the page. `columns` are [heading, class], `rows` lists of cells. */
export function table(caption, columns, rows) {
  const heads = columns.map(([heading, kind]) => h("th", { scope: "col", class: kind }, heading));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, heads)),
      h("tbody", {}, rows.map((cells) => row(columns, cells)))));
}

/** A row of such a table; each cell knows its heading, for screens on which the rows become cards. */
export function row(columns, cells, attributes = {}) {
  return h("tr", attributes, cells.map((cell, index) =>
    h("td", { class: columns[index][1], "data-label": columns[index][0] }, cell)));
}

/** Draws `draw(width)` into the element now and whenever it becomes wider or narrower. */
export function drawnToFit(element, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== last) {
      last = width;
      draw(width);
    }
  }).observe(element);
  return () => { if (last) draw(last); };
}
