"""Every answer of the service: the recommendation with its evidence, or a problem document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import anyio.to_thread
import pytest
from fa_tuner_api import create_app

from fa_tuner.cli import main
from fa_tuner.settings import ServiceSettings
from fa_tuner.store.repository import Store
from tests.support.service import Service, problem, strict_json

Tuned = Callable[..., str]
PASSWORD = "hunter2secret"


def test_health_asks_no_database(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def untouchable(*_: Any) -> None:
        raise AssertionError("the store was opened")

    monkeypatch.setattr(Store, "open", untouchable)
    monkeypatch.setattr(anyio.to_thread, "run_sync", untouchable)  # nor waits for a thread
    response = Service(create_app(settings)).get("/healthz")
    assert (response.status_code, strict_json(response)) == (200, {"status": "ok"})


def test_a_recommendation_comes_with_its_evidence(service: Service, tuned: Tuned) -> None:
    model = tuned()
    response = service.recommended(model=model)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer = strict_json(response)
    assert answer["model"] == model
    assert answer["policy"]["dtype"] == "fp8"
    assert not answer["policy"]["native"]
    assert answer["coverage"]["proven"]
    assert answer["latency"]["source"] == "projected"
    assert answer["holdout"] == "passed"
    assert answer["psnr_db"] >= 30
    assert len(answer["prompts"]) == 2
    assert answer["holds_for"]["steps"] == 6
    assert "landscape" in answer["environment"]["versions"]
    assert any("projected" in note for note in answer["notes"])


QUESTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"min_psnr": 37},
    {"quality": "recommended"},
    {"quality": "good", "min_psnr": 20},
    {"constraint": ["ssim>=0.9", "mae<=5"]},
    {"aggregate": "mean", "min_psnr": 36},
    {"aggregate": "p50", "min_psnr": 36},
    {"dtype": "fp8", "steps": 6, "height": 480, "width": 832, "frames": 81},
    {"task": "t2v", "guided": True, "engine": "replay", "latency_source": "projected", "device": "pr2640"},
    {"steps": 40, "engine_version": "0.30", "allow_nearest": True},
)


def flags(question: dict[str, Any]) -> list[str]:
    """The same question for the command line."""
    words = []
    for name, value in question.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [w for one in (value if isinstance(value, list) else [value])
                                               for w in (flag, str(one))]  # fmt: skip
    return words


def test_it_is_the_answer_of_the_command_line(
    service: Service, tuned: Tuned, settings: ServiceSettings,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = ["fa-tune", "recommend", "--model", tuned(trials=14), "--storage", settings.url, "--json"]
    policies = set()
    for question in QUESTIONS:
        monkeypatch.setattr(sys, "argv", [*command, *flags(question)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, question
        response = service.recommended(model=command[3], **question)
        assert response.status_code == 200, response.text
        answer = {key: value for key, value in strict_json(response).items() if key not in ("links", "age_seconds")}
        assert answer == json.loads(capsys.readouterr().out)
        policies.add(str(answer["policy"]))
    assert len(policies) > 1  # else the questions would prove little


def test_the_study_whose_policy_passed_gives_the_answer(service: Service, tuned: Tuned) -> None:
    tuned(study="passed")
    model = tuned(study="unchecked", min_psnr=99)
    assert strict_json(service.recommended(model=model))["study"] == "passed"
    assert strict_json(service.recommended(model=model, min_psnr=30))["study"] == "passed"


def test_a_further_study_is_seen_at_once(service: Service, tuned: Tuned, settings: ServiceSettings) -> None:
    model = tuned(study="first")
    assert strict_json(service.recommended(model=model))["study"] == "first"
    tuned(study="second")
    assert strict_json(service.recommended(model=model))["study"] == "second"
    with Store.open(settings.url) as store:
        store.delete_study("second")
    assert strict_json(service.recommended(model=model))["study"] == "first"


def test_the_answer_says_how_old_it_is_and_where_the_rest_is(service: Service, tuned: Tuned) -> None:
    answer = strict_json(service.recommended(model=tuned(), min_psnr=32, aggregate="mean"))
    assert 0 <= answer["age_seconds"] < 600
    assert answer["verified"] is True and answer["differences"] == []
    assert answer["worst_psnr_db"] == min(case["metrics"]["psnr_db"] for case in answer["prompts"])
    assert answer["links"]["evidence"] == []  # replayed: nothing was generated
    for link in (answer["links"]["study"], answer["links"]["front"]):
        assert strict_json(service.get(link))["study"] == answer["study"]
    assert answer["links"]["exports"].keys() == {"deploy", "stage-args", "flags"}
    for link in answer["links"]["exports"].values():
        text = service.get(link).text
        assert f'"{answer["policy"]["skip_steps"]}"' in text
        assert "psnr_db>=32 (mean prompt)" in text


def test_what_is_not_stored_is_not_found(service: Service, tuned: Tuned) -> None:
    assert "there is no study yet" in problem(service.recommended(model="Wan"), 404, "not-found", "nearest")
    model = tuned()
    assert model in problem(service.recommended(model="Wan"), 404, "not-found", "nearest")
    asked: dict[str, Any] = {
        "steps": 40, "dtype": "mxfp4", "height": 1280, "width": 1280, "frames": 121, "revision": "main", "task": "i2v",
        "guided": False, "device": "A5", "engine": "diffusers", "engine_version": "0.30", "latency_source": "measured",
    }  # fmt: skip
    for name, value in asked.items():
        response = service.recommended(model=model, **{name: value})
        problem(response, 404, "not-found", "nearest")
        (near,) = strict_json(response)["nearest"]
        assert [each["field"] for each in near["differences"]] == [name]
        assert strict_json(service.get(near["link"]))["study"] == near["study"]


def test_the_nearest_answers_where_that_is_allowed(service: Service, tuned: Tuned) -> None:
    model = tuned()
    answer = strict_json(service.recommended(model=model, steps=40, guided=True, allow_nearest=True))
    assert answer["verified"] is False
    assert answer["differences"] == [{"field": "steps", "asked": 40, "stored": 6}]
    problem(service.recommended(model="other", allow_nearest=True), 404, "not-found", "nearest")


def test_nothing_qualifies(service: Service, tuned: Tuned) -> None:
    model = tuned()
    detail = problem(service.recommended(model=model, min_psnr=90), 404, "nothing-qualifies")
    assert "the nearest is fp8, skip" in detail


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * 5000}, "model"),
        ({"steps": "many"}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"min_psnr": "nan"}, "min_psnr"),
        ({"min_psnr": "inf"}, "min_psnr"),
        ({"min_psnr": "-inf"}, "min_psnr"),
        ({"min_psnr": 200}, "min_psnr"),
        ({"min_psnr": -1}, "min_psnr"),
        ({"quality": "best"}, "quality"),
        ({"aggregate": "median"}, "aggregate"),
        ({"aggregate": "p51"}, "aggregate"),
        ({"dtype": "int4"}, "dtype"),
        ({"task": "v2v"}, "task"),
        ({"guided": "perhaps"}, "guided"),
        ({"device": ""}, "device"),
        ({"engine_version": "0.30.1"}, "engine_version"),
        ({"engine_version": "\u0660.\u0661"}, "engine_version"),
        ({"latency_source": "fitted"}, "latency_source"),
        ({"allow_nearest": "maybe"}, "allow_nearest"),
        ({"constraint": "psnr>=30"}, "psnr"),
        ({"constraint": "psnr_db<=30"}, "wrong way"),
        ({"constraint": "mae<=nan"}, "metric>=value"),
        ({"constraint": "mae<=1e999"}, "finite"),
        ({"constraint": ["ssim>=0.9"] * 17}, "constraint"),
        ({"limit": 5}, "limit"),
        ({"model": ["x", "y"], "wrong": 1}, "wrong"),
    ],
)
def test_a_question_that_cannot_be_understood(
    service: Service, tuned: Tuned, question: dict[str, Any], word: str
) -> None:
    detail = problem(service.recommended(**{"model": "x", **question}), 422, "invalid-request")
    assert word in detail
    assert len(detail) < 1000


def test_a_question_without_a_model(service: Service) -> None:
    assert "model" in problem(service.get("/api/v1/recommendations"), 422, "invalid-request")


@pytest.mark.parametrize("model", ["a\0b", "../../etc/passwd", "%252e%252e", "<script>", "ü" * 4000, "\ud800"])
def test_odd_models_are_text_and_nothing_else(service: Service, model: str) -> None:
    encoded = quote(model.encode("utf-8", "surrogatepass"))
    problem(service.get(f"/api/v1/recommendations?model={encoded}"), 404, "not-found", "nearest")


def test_routes_and_methods_that_are_not_there(service: Service) -> None:
    problem(service.get("/api/v1/recommendation"), 404, "not-found")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/healthz", "/api/v1/recommendations"):
            response = service.request(method, path, content=b"{")
            problem(response, 405, "method-not-allowed")
            assert "GET" in response.headers["allow"]
    assert service.request("PUT", "/api/v1/studies").headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////dev/null/fa-tune.db",
        "postgresql://root:hunter2secret@127.0.0.1:1/x",
        "nonsense hunter2secret",
    ],
)
def test_a_store_that_cannot_be_opened(url: str) -> None:
    service = Service(create_app(ServiceSettings(storage=url)))
    response = service.recommended(model="x")
    assert PASSWORD not in problem(response, 503, "store-unavailable")
    assert service.get("/healthz").status_code == 200


def test_an_unforeseen_error_is_a_problem_document_without_its_words(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError(PASSWORD)

    monkeypatch.setattr(Store, "stamps", broken)
    response = service.recommended(model="x")
    assert "ZeroDivisionError" in problem(response, 500, "internal")
    assert PASSWORD not in response.text


def test_the_schema_describes_the_question(service: Service) -> None:
    schema = strict_json(service.get("/openapi.json"))
    parameters = schema["paths"]["/api/v1/recommendations"]["get"]["parameters"]
    assert {p["name"] for p in parameters} == {
        "model", "min_psnr", "quality", "constraint", "aggregate", "dtype", "steps", "height", "width", "frames",
        "revision", "task", "guided", "device", "engine", "engine_version", "latency_source", "allow_nearest",
    }  # fmt: skip
    assert "store" not in str(parameters)
    (how,) = (p["schema"] for p in parameters if p["name"] == "aggregate")
    assert "p([1-9]" in how["pattern"]
