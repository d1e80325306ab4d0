"""The list of studies, and a study's plot, tables and sensitivities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import NASTY, Served, place_of

Visit = Callable[..., Page]


def test_the_list(visit: Visit, service: Served) -> None:
    page = visit()
    expect(page).to_have_title("Studies · fa-tune")
    rows = page.locator("tbody tr")
    studies = service.get("/api/v1/studies")["studies"]
    assert rows.count() >= len(studies) >= 3
    for study in studies:
        row = rows.filter(has=page.get_by_role("link", name=study["study"], exact=True))
        for text in (study["state"], f"{study['evaluated']} of {study['target']}", study["workload"]["model"]):
            expect(row).to_contain_text(text)
        measured = study["latency_source"] == "measured"
        expect(row).to_contain_text("measured on" if measured else "projected from profile")
    page.get_by_label("State").select_option("finished")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(sum(study["state"] == "finished" for study in studies))
    page.go_back()
    expect(rows.filter(has_text="running")).not_to_have_count(0)
    page.get_by_role("link", name="tiny", exact=True).click()
    expect(page).to_have_title("tiny · fa-tune")
    expect(page.locator("h1")).to_be_focused()


def test_a_name_is_only_a_name(visit: Visit) -> None:
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.get_by_role("link", name=NASTY).click()
    expect(page.locator("h1")).to_contain_text(NASTY)
    expect(page).to_have_title(f"{NASTY} · fa-tune")
    assert page.locator("main script").count() == 0


@pytest.mark.parametrize("name", ["tiny", "replayed", NASTY])
def test_the_plot_shows_what_the_service_says(visit: Visit, service: Served, name: str) -> None:
    front, trials = service.study(name, "/front"), service.study(name, "/trials?limit=100")["trials"]
    page = visit(place_of(name))
    plot = page.locator(".plot svg")
    expect(plot.locator("a.point")).to_have_count(len(front["front"]))
    on_front = {point["policy"]["id"] for point in front["front"]}
    assert set(plot.locator("a.point").evaluate_all("all => all.map((each) => each.dataset.policy)")) == on_front
    missed = [point for point in front["front"] if not point["feasible"]]
    assert plot.locator("a.point.infeasible").count() == len(missed)
    if missed:
        fill = "e => getComputedStyle(e).fill"
        hollow, full = (plot.locator(f"a.{kind} .mark").first.evaluate(fill) for kind in ("infeasible", "feasible"))
        assert hollow != full
    assert plot.locator(".others > *").count() == sum(
        not trial["failed"] and trial["policy"]["id"] not in on_front for trial in trials
    )
    assert plot.locator("a.best").get_attribute("data-policy") == front["recommended"]["policy"]["id"]
    profile = f"projected from profile {front.get('latency_profile')}"
    kind = "measured on" if front["latency_source"] == "measured" else profile
    expect(plot.locator(".axes .label").first).to_contain_text(kind)
    operator = {"emulated": "operator emulated", "replayed": "replayed from", "real": "real operator"}
    expect(page.locator("main")).to_contain_text(operator[front["environment"]["operator"]])


def heights(page: Page) -> dict[str, Any]:
    """Where the plot has its line and its floor, and each point with its PSNR."""
    found: dict[str, Any] = page.evaluate(
        """() => {
          const plot = document.querySelector(".plot svg");
          const centre = (box) => box.y + box.height / 2;
          return {
            line: centre(plot.querySelector(".bound line").getBoundingClientRect()),
            floor: plot.querySelector(".floor rect").getBoundingClientRect().bottom,
            points: Object.fromEntries([...plot.querySelectorAll("a.point")].map((point) => {
              const box = point.querySelector(".mark").getBoundingClientRect();
              return [point.dataset.policy, [box.x + box.width / 2, centre(box)]];
            })),
          };
        }"""
    )
    return found


@pytest.mark.parametrize("name", ["tiny", "replayed"])
def test_points_line_and_floor_are_where_their_figures_put_them(visit: Visit, service: Served, name: str) -> None:
    document = service.study(name, "/front")
    seen = heights(visit(place_of(name)))
    bound = float(document["requirement"][0].removeprefix("psnr_db>="))
    worst = {p["policy"]["id"]: min(c["metrics"]["psnr_db"] for c in p["prompts"]) for p in document["front"]}
    across = {p["policy"]["id"]: p["latency"]["relative"] for p in document["front"]}
    below = {policy: psnr for policy, psnr in worst.items() if psnr < 100}  # the axis may be broken above those
    one, other = min(below, key=below.__getitem__), max(below, key=below.__getitem__)

    def height(psnr: float) -> float:
        share = (psnr - worst[one]) / (worst[other] - worst[one])
        low, high = seen["points"][one][1], seen["points"][other][1]
        return float(low + share * (high - low))

    for policy, psnr in below.items():
        assert seen["points"][policy][1] == pytest.approx(height(psnr), abs=1)
    assert seen["line"] == pytest.approx(height(bound), abs=1.5)
    (native,) = worst.keys() - below.keys()
    assert document["noise_floor_db"] == worst[native] == 100
    assert seen["floor"] == pytest.approx(seen["points"][native][1], abs=1)
    assert seen["floor"] < seen["points"][other][1]
    order = sorted(across, key=across.__getitem__)
    assert order == sorted(order, key=lambda policy: seen["points"][policy][0])


def test_points_by_keyboard(visit: Visit, service: Served) -> None:
    front = sorted(service.study("tiny", "/front")["front"], key=lambda point: point["latency"]["relative"])
    ids = [point["policy"]["id"] for point in front]
    page = visit(place_of("tiny"))
    stop = page.locator('.plot a[tabindex="0"]')
    expect(stop).to_have_count(1)
    stop.focus()
    focused = "document.activeElement.dataset.policy"
    for key, at in (("Home", 0), ("ArrowRight", 1), ("ArrowUp", 0), ("ArrowLeft", 0), ("End", -1), ("ArrowDown", -1)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == ids[at], key
        expect(stop).to_have_count(1)
    page.keyboard.press("Home")
    expect(page.locator(".readout")).to_contain_text(f"({front[0]['latency']['source']})")
    for key, at in (("Enter", 0), (" ", 1)):
        page.keyboard.press(key)
        page.wait_for_url(f"**/{place_of('tiny', ids[at])}")
        expect(page.locator("#policy-heading")).to_be_focused()
        page.locator(".plot a.chosen").focus()
        page.keyboard.press("ArrowRight")
    page.go_back()
    page.wait_for_url(f"**/{place_of('tiny', ids[0])}")
    page.go_back()
    page.wait_for_url(f"**/{place_of('tiny')}")
    expect(page.locator(f'.plot a[data-policy="{ids[0]}"]')).to_be_focused()  # where it was left


def test_the_heat_map(visit: Visit, service: Served) -> None:
    sensitivity = service.study("replayed", "/sensitivity")
    page = visit(place_of("replayed"))
    for axis in ("steps", "layers"):
        cells = page.locator(f'.heat[data-axis="{axis}"][data-dtype="fp8"] .share')
        expected = [share for prompt in sensitivity["prompts"] for share in prompt["dtypes"][0][axis]]
        assert cells.count() == len(expected) == 2 * len(sensitivity[axis])
        assert cells.evaluate_all("all => all.map((each) => Number(each.dataset.share))") == pytest.approx(expected)
        strength = cells.evaluate_all("all => all.map((each) => Number(each.getAttribute('fill-opacity')))")
        assert sorted(range(len(expected)), key=expected.__getitem__) == sorted(
            range(len(expected)), key=lambda at: (strength[at], expected[at])
        )
    expect(page.locator("main")).to_contain_text(f"fitted to {sensitivity['measured']} measured policies")


def test_what_is_not_there(visit: Visit) -> None:
    for place in ("#/studies/0123456789abcdef", "#/nothing", "#/studies/..%2F"):
        expect(visit(place).locator("h1")).to_have_text("Not found")
    page = visit(place_of("tiny", "0" * 64))
    expect(page.locator(".card")).to_contain_text("no policy of that id")
