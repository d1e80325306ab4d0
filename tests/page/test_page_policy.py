"""One policy: its strip, metrics, frames, clips and configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import study_id
from tests.page.conftest import Served, place_of
from tests.support.browser import pixels

Visit = Callable[..., Page]


def key_of(policy: Any) -> str:
    parts = SkipSelector.parse(policy["skip_steps"]), SkipSelector.parse(policy["skip_layers"])
    return SkipPolicy(policy["dtype"], *parts).key


def test_a_point_that_is_clicked_opens_its_policy(visit: Visit, service: Served) -> None:
    document = service.study("tiny", "/front")
    page = visit(place_of("tiny"))
    for point in document["front"]:
        page.locator(f'.plot a[data-policy="{point["policy"]["id"]}"]').click()
        card = page.locator(".card")
        if not point["policy"]["native"]:
            expect(card.locator("h2")).to_contain_text(f"native steps {point['policy']['skip_steps'] or 'none'}")
        expect(card).to_contain_text(f"{100 * point['latency']['relative']:.2f} % of native")
        expect(card).to_contain_text(f"{point['latency']['source']} from profile {document['latency_profile']}")
        expect(card.get_by_text("meets" if point["feasible"] else "misses")).to_be_visible()
        held = {None: "not checked on", True: "passed on", False: "failed on"}[point.get("holdout_met")]
        expect(card).to_contain_text(f"{held} held-out prompts")


@pytest.mark.parametrize("name", ["tiny", "replayed"])
def test_the_strip_is_the_policy(visit: Visit, service: Served, name: str) -> None:
    document = service.study(name, "/front")
    steps, layers = document["environment"]["steps"], document["environment"]["layers"]
    page = visit(place_of(name))
    for policy in (point["policy"] for point in document["front"]):
        page.locator(f'.plot a[data-policy="{policy["id"]}"]').click()
        expect(page.locator("a.chosen")).to_have_attribute("data-policy", policy["id"])
        cells = page.locator(".card .strip [data-step]")
        expect(cells).to_have_count(steps * len(layers))
        shown = cells.evaluate_all("all => all.map((c) => [+c.dataset.step, +c.dataset.layer, c.classList[0]])")
        skipped = [SkipSelector.parse(policy[name]) for name in ("skip_steps", "skip_layers")]
        for step, layer, kind in shown:
            native = policy["native"] or step in skipped[0] or layer in skipped[1]
            assert kind == ("native" if native else "quantized"), (policy, step, layer)


def test_metrics_by_prompt(visit: Visit, service: Served, best: str) -> None:
    point = service.study("tiny", "/front")["recommended"]
    page = visit(best)
    rows = page.get_by_role("region", name="Quality by prompt").locator("tbody tr")
    cases = [*point["prompts"], *point["holdout_prompts"]]
    assert rows.count() == len(cases) >= 2
    for at, case in enumerate(cases):
        expect(rows.nth(at)).to_contain_text(case["prompt"])
        psnr = case["metrics"]["psnr_db"]
        expect(rows.nth(at)).to_contain_text("identical" if psnr >= 100 else f"{psnr:.2f} dB")
        expect(rows.nth(at)).to_contain_text("held out" if at >= len(point["prompts"]) else "searched")


def test_frames_are_compared_without_loss(visit: Visit, service: Served, best: str) -> None:
    policy = service.study("tiny", "/front")["recommended"]["policy"]
    page = visit(best)
    for case, index in ((0, 0), (1, 3)):
        page.get_by_label("Prompt", exact=True).select_option(str(case))
        page.get_by_label("Frame", exact=True).fill(str(index))
        expect(page.locator(".scrub output")).to_have_text(f"{index + 1} of 5")
        expect(page.locator(f'.stage[data-frame="{index}"][data-case="{case}"]')).to_be_visible()
        found = [service.artifacts.frames("tiny", key, case) for key in ("native", key_of(policy))]
        one, other = (frames[index].astype(int) for frames in found if frames is not None)
        assert (pixels(page, "#baseline")[..., :3] == one).all()
        assert (pixels(page, "#candidate")[..., :3] == other).all()
        apart = np.abs(one - other)
        assert apart.max() > 0
        for factor in (1, 8, 32):
            page.get_by_label("Difference map, amplified").select_option(str(factor))
            assert (pixels(page, "#difference")[..., :3] == np.minimum(255, factor * apart)).all()
        expect(page.locator("#difference-said")).to_contain_text(
            f"Largest difference: {apart.max()} of 255 grey levels"
        )
        share = 100 * (apart.max(axis=2) > 0).mean()
        expect(page.locator("#difference-said")).to_contain_text(f"{share:.1f} % of the pixels differ")
        for position, columns in ((0, 0), (25, 8), (100, 32)):
            page.get_by_label("Wipe").fill(str(position))
            wiped = pixels(page, "#wiped")[..., :3]
            assert (wiped[:, :columns] == one[:, :columns]).all() and (wiped[:, columns:] == other[:, columns:]).all()
    page.get_by_role("button", name="previous frame").click()
    expect(page.locator('.stage[data-frame="2"]')).to_be_visible()


def test_clips_play_together(visit: Visit, best: str) -> None:
    page = visit(best)
    page.get_by_text("Clips in motion").click()
    page.get_by_role("button", name="Play both clips").click()
    expect(page.get_by_role("button", name="Pause both clips")).to_be_visible()
    state = "all => all.map((each) => [each.paused, each.readyState > 1, each.videoWidth])"
    assert page.locator("video").evaluate_all(state) == [[False, True, 32]] * 2
    page.get_by_role("button", name="Pause both clips").click()
    assert page.locator("video").evaluate_all("all => all.every((each) => each.paused)")


def test_where_nothing_is_kept_it_says_so(visit: Visit, service: Served) -> None:
    replayed = service.study("replayed", "/front")["recommended"]["policy"]["id"]
    expect(visit(place_of("replayed", replayed)).locator("main")).to_contain_text("no frames were generated")
    front = {point["policy"]["id"] for point in service.study("tiny", "/front")["front"]}
    trials = service.study("tiny", "/trials?limit=100")["trials"]
    other = next(trial["policy"]["id"] for trial in trials if trial["policy"]["id"] not in front)
    page = visit(place_of("tiny", other))
    expect(page.get_by_text("No frames are kept of this policy")).to_be_visible()
    expect(page.locator(".stage")).to_be_hidden()


@pytest.mark.parametrize("format_", ["deploy", "stage-args", "flags"])
def test_the_configuration_is_the_exports(visit: Visit, service: Served, best: str, format_: str) -> None:
    policy = best.rpartition("/")[2]
    path = f"/api/v1/studies/{study_id('tiny')}/export?format={format_}&policy={policy}"
    text = httpx.get(service.address + path).text
    page = visit(best)
    page.get_by_label("As", exact=True).select_option(format_)
    expect(page.locator("#export")).to_have_text(text, use_inner_text=True)
    assert page.locator("#export code").evaluate("code => code.textContent") == text
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == text
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download").click()
    assert saved.value.path().read_text(encoding="utf-8") == text
