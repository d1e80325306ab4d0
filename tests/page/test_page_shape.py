"""How the page looks and is reached: narrow and wide, light and dark, by Tab alone."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import NASTY, Served, go, place_of

Visit = Callable[..., Page]
# every text with the ground that it stands on, where the contrast of the two is below AA
POOR_CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (top, ground) => {
    const alpha = top[3] ?? 1;
    return ground.map((value, at) => alpha * top[at] + (1 - alpha) * value);
  };
  const groundOf = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    let ground = layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
    for (const rect of element.closest(".heat g, .floor")?.querySelectorAll("rect") || []) {
      if (rect.parentElement.matches(".floor")) continue; // its text stands above it
      const style = getComputedStyle(rect);
      ground = over([...parse(style.fill).slice(0, 3), Number(style.fillOpacity)], ground);
    }
    return ground;
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.textContent.trim());
    if (!texts.length || !element.getClientRects().length) continue;
    if (element.matches("title, option, .unseen, :disabled")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.color);
    const ground = groundOf(element);
    const [one, other] = [light(over(ink, ground)), light(ground)].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) poor.push([element.tagName, element.getAttribute("class"), texts[0].textContent, contrast]);
  }
  return poor;
}"""


@pytest.fixture
def places(service: Served, best: str) -> list[str]:
    """One of each kind."""
    model = service.study("tiny")["workload"]["model"]
    replayed = place_of("replayed", service.study("replayed", "/front")["recommended"]["policy"]["id"])
    asked = f"#/recommend?model={quote(model, safe='')}&min_psnr=1"
    return ["#/", best, replayed, place_of(NASTY), asked, f"{asked}&steps=40", "#/nothing"]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(visit: Visit, places: list[str], width: int) -> None:
    page = visit(width=width, height=740)
    for place in places:
        go(page, place)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for_timeout(50)  # for what is drawn to fit
        right = """() => Math.max(
          document.documentElement.scrollWidth,
          ...[...document.querySelectorAll("main svg, canvas")].map((each) => each.getBoundingClientRect().right),
        )"""
        assert page.evaluate(right) <= width, place


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(visit: Visit, places: list[str], dark: bool) -> None:
    page = visit(dark=dark)
    for place in places:
        go(page, place)
        page.wait_for_timeout(200)  # until what was busy is no longer pale
        assert page.evaluate(POOR_CONTRAST) == [], place
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(16, 21, 27)" if dark else "rgb(247, 248, 250)")


def test_every_control_is_reached_by_tab_and_seen_then(visit: Visit, best: str) -> None:
    page = visit(best)
    page.evaluate(
        """() => {
          const all = "a[href]:not([tabindex='-1']), button:not(:disabled), select, input, summary, [tabindex='0']";
          window.expected = [...document.querySelectorAll(all)].filter((each) => each.checkVisibility());
          window.reached = new Set();
          window.unseen = [];
        }"""
    )
    expected = page.evaluate("window.expected.length")
    assert expected > 20
    page.evaluate("document.activeElement.blur()")
    for _ in range(expected + 5):
        page.keyboard.press("Tab")
        page.evaluate(
            """() => {
              const at = document.activeElement;
              window.reached.add(at);
              const style = (element) => getComputedStyle(element);
              const ring = at.querySelector?.(".target");
              const marked = ring ? style(ring).strokeWidth === "3px" : parseFloat(style(at).outlineWidth) >= 2;
              if (at !== document.body && !marked) window.unseen.push(at.outerHTML.slice(0, 80));
            }"""
        )
    missing = "window.expected.filter((each) => !window.reached.has(each)).map((each) => each.outerHTML.slice(0, 80))"
    assert page.evaluate(missing) == []
    assert page.evaluate("window.unseen") == []
    others = "[...window.reached].filter((each) => ![document.body, ...window.expected].includes(each)).length"
    assert page.evaluate(others) == 0


def test_every_control_and_drawing_has_a_name(visit: Visit, places: list[str]) -> None:
    named = "button, select, input, a[href], video, [role=img], [role=region]"
    nameless = """(named) => [...document.querySelectorAll(named)]
      .filter((each) => each.checkVisibility())
      .filter((each) => !(each.getAttribute("aria-label") || each.labels?.length || each.textContent.trim()))
      .map((each) => each.outerHTML.slice(0, 80))"""
    page = visit()
    for place in places:
        go(page, place)
        assert page.evaluate(nameless, named) == [], place


def test_the_skip_link_leads_to_the_content(visit: Visit) -> None:
    page = visit()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
