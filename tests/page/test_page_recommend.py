"""The form that asks for a recommendation."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import httpx
from playwright.sync_api import Page, expect

from tests.page.conftest import Served, place_of

Visit = Callable[..., Page]


def test_an_answer_with_its_evidence(visit: Visit, service: Served) -> None:
    model = service.study("tiny")["workload"]["model"]
    page = visit("#/recommend")
    page.get_by_label("Model").fill(model)
    page.get_by_label("Least PSNR").fill("1")
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    expect(answer.locator("h2")).to_have_text("Answer")
    expect(answer.locator("h2")).to_be_focused()
    found = httpx.get(f"{service.address}/api/v1/recommendations", params={"model": model, "min_psnr": 1}).json()
    for text in (
        f'"{found["policy"]["skip_steps"]}"', f'"{found["policy"]["skip_layers"]}"', "psnr_db>=1 (worst prompt)",
        f"{100 * found['latency']['gain']:.2f} %, projected from profile ascend-pr2640", "verified: a study matches",
        f"held-out prompts: {found['holdout']}", "operator emulated", *found["notes"],
    ):  # fmt: skip
        expect(answer).to_contain_text(text)
    expect(page.locator("#export")).to_contain_text("diffusion_kv_cache_dtype")
    shared = page.url
    page.get_by_role("link", name="Look at its pictures").click()
    page.wait_for_url(f"**/{place_of('tiny', found['policy']['id'])}")
    page.go_back()
    expect(answer.locator("h2")).to_have_text("Answer")  # asked again, by the address alone
    assert page.url == shared
    assert page.get_by_label("Least PSNR").input_value() == "1"


def test_no_answer_names_the_nearest(visit: Visit, service: Served) -> None:
    model = service.study("tiny")["workload"]["model"]
    place = f"#/recommend?model={quote(model, safe='')}&min_psnr=1&steps=40"
    page = visit(place)
    answer = page.locator(".answer")
    expect(answer.locator("h2")).to_have_text("No answer")
    near = answer.locator(".near")
    expect(near).to_have_count(1)
    expect(near).to_contain_text("steps: asked 40, the study has 3")
    page.get_by_label("let the nearest study answer").check()
    page.get_by_role("button", name="Ask").click()
    expect(answer).to_contain_text("unverified: the nearest study answers")
    expect(answer.locator(".notice")).to_contain_text("steps: asked 40, the study has 3")
    page.go_back()
    near.get_by_role("link", name="tiny").click()
    expect(page.locator("h1")).to_contain_text("tiny")


def test_an_unknown_model_and_further_bounds(visit: Visit, service: Served) -> None:
    page = visit("#/recommend?model=nobody%2Fknows")
    expect(page.locator(".answer")).to_contain_text("nobody/knows")
    model = service.study("tiny")["workload"]["model"]
    page.get_by_label("Model").fill(model)
    page.get_by_text("Further filters").click()
    page.get_by_label("Further bounds").fill("ssim>=0.2, mae<=200")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".answer")).to_contain_text("ssim>=0.2")
    expect(page.locator(".answer")).to_contain_text("mae<=200")
