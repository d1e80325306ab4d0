"""Studies that are asked for: what is taken, what is refused, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fa_tuner_api import create_app

from fa_tuner.domain.study import study_id
from fa_tuner.settings import ServiceSettings
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.keys import Keys
from fa_tuner.store.repository import Store
from tests.support.service import Service, problem, strict_json
from tests.support.stored import HUB_MODEL, STUDIES, add_study
from tests.support.tables import noisy_landscape

Work = Callable[..., str]
JOBS = "/api/v1/jobs"
RECORDED = "/models/landscape.json"
TEXT = {"model": HUB_MODEL, "prompts": ["a red bus in the rain", "a lake"]}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One for all refusals, as none of them may leave anything."""
    folder = tmp_path_factory.mktemp("refusing")
    where = {"storage": f"sqlite:///{folder}/fa-tune.db", "artifacts": str(folder / "artifacts")}
    return Service(create_app(ServiceSettings(**where, models=[HUB_MODEL, RECORDED])))


def asked(service: Service, **body: Any) -> dict[str, Any]:
    """The job of a study that was asked for."""
    answer = service.request("POST", STUDIES, json=body)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = strict_json(answer)
    assert answer.headers["location"] == document["links"]["study"]
    return document


def refused(service: Service, status: int, kind: str, **body: Any) -> str:
    detail = problem(service.request("POST", STUDIES, json=body), status, kind)
    assert len(detail) < 1000
    assert strict_json(service.get(JOBS)) == {"jobs": []}
    return detail


# --- asking ---------------------------------------------------------------------------------------------------------


def test_a_study_that_was_asked_for_waits(service: Service) -> None:
    job = asked(service, **TEXT, min_psnr=30, study="a/b \N{SNOWMAN}", workers=2)
    assert (job["study"], job["id"]) == ("a/b \N{SNOWMAN}", study_id("a/b \N{SNOWMAN}"))
    assert (job["model"], job["state"], job["workers"], job["attempts"]) == (HUB_MODEL, "queued", 2, 0)
    assert job["request"] == {**TEXT, "min_psnr": 30}
    assert "problem" not in job
    waiting = strict_json(service.get(job["links"]["study"]))
    assert (waiting["study"], waiting["state"], waiting["job"]) == (job["study"], "queued", job)
    assert waiting["links"]["self"] == job["links"]["study"] and waiting["links"]["events"] == job["links"]["events"]
    for part in ("front", "trials", "sensitivity"):
        problem(service.get(waiting["links"][part]), 404, "not-found")
    assert strict_json(service.get(JOBS)) == {"jobs": [job]}
    assert strict_json(service.get(STUDIES)) == {"studies": []}  # there are no figures


def test_a_worker_tunes_what_was_asked_for(service: Service, landscape: str, work: Work) -> None:
    job = asked(service, model=landscape, trials=8, min_psnr=28)
    assert "finished" in work()
    document = strict_json(service.get(job["links"]["study"]))
    assert (document["state"], document["evaluated"], document["requirement"]) == ("finished", 8, ["psnr_db>=28"])
    assert (document["job"]["state"], document["job"]["reason"]) == ("finished", document["reason"])
    assert document["job"]["created"] <= document["job"]["updated"]
    assert strict_json(service.get(document["links"]["front"]))["front"]
    assert strict_json(service.recommended(model=landscape))["study"] == job["study"]
    (listed,) = strict_json(service.get(STUDIES))["studies"]
    assert listed["id"] == job["id"]


def test_every_setting_reaches_the_study(service: Service, landscape: str, work: Work, store: Store) -> None:
    job = asked(
        service, model=landscape, study="mine", trials=5, quality="good", constraints=["mae<=9"], aggregate="mean",
        dtype="fp8", sampler="random", sampler_seed=7, repeats=4, tries=["0,1/0"], budget="1h",
    )  # fmt: skip
    work()
    spec = store.study("mine").spec
    assert (spec.sampler, spec.sampler_seed, spec.dtype) == ("random", 7, "fp8")
    assert spec.requirement.aggregate == "mean" and "mae<=9" in map(str, spec.requirement.constraints)
    policies = [str(evaluation.policy.key) for evaluation in store.evaluations("mine")]
    assert "fp8:0,1/0" in policies
    assert strict_json(service.get(job["links"]["study"]))["job"]["state"] == "finished"


def test_a_workload_of_its_own_settings(service: Service) -> None:
    shape = {
        "revision": "main", "holdout_prompts": ["a hill"], "seeds": [1, 2**63 - 1], "height": 16, "width": 8192,
        "frames": 2048, "steps": 1, "guidance": 0, "guidance_2": 100, "negative_prompt": "", "flow_shift": 1000,
        "boundary_ratio": 0.5,
    }  # fmt: skip
    assert asked(service, **TEXT, **shape)["request"] == {**TEXT, **shape}


def test_a_whole_number_may_be_written_with_a_point(service: Service) -> None:
    once = {"Idempotency-Key": "1"}
    one = service.request("POST", STUDIES, json={**TEXT, "steps": 8, "seeds": [1], "guidance": 5}, headers=once)
    other = service.request("POST", STUDIES, json={**TEXT, "steps": 8.0, "seeds": [1.0], "guidance": 5.0}, headers=once)
    assert (one.status_code, other.status_code) == (202, 202) and one.json() == other.json()


def test_what_a_waiting_studys_name_is_made_of(service: Service, landscape: str) -> None:
    one = asked(service, **TEXT)
    other = asked(service, **TEXT, seeds=[1])
    recorded = asked(service, model=landscape)
    assert one["study"].startswith("Wan2.2-T2V-A14B-Diffusers-fp8-") and one["study"] != other["study"]
    assert recorded["study"].startswith("landscape-3-fp8-")
    detail = problem(service.request("POST", STUDIES, json=TEXT), 409, "conflict")
    assert one["study"] in detail and one["id"] in detail
    assert len(strict_json(service.get(JOBS))["jobs"]) == 3


def test_the_name_of_a_study_that_is_stored_is_taken(service: Service, store: Store) -> None:
    add_study(store, "s")
    answer = service.request("POST", STUDIES, json={**TEXT, "study": "s"})
    assert "'s'" in problem(answer, 409, "conflict") and study_id("s") in answer.text


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


def test_the_same_key_with_the_same_request_makes_one_study(service: Service) -> None:
    once = {"Idempotency-Key": "5f0e2b1c"}
    first, again = (service.request("POST", STUDIES, json=TEXT, headers=once) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json() and first.headers["location"] == again.headers["location"]
    reordered = dict(reversed(TEXT.items()))
    assert service.request("POST", STUDIES, json=reordered, headers=once).json() == first.json()
    for other in ({**TEXT, "steps": 8}, {**TEXT, "study": "x"}, {**TEXT, "workers": 2}):
        detail = problem(service.request("POST", STUDIES, json=other, headers=once), 409, "conflict")
        assert "Idempotency-Key" in detail
    problem(service.request("POST", STUDIES, json=TEXT, headers={"Idempotency-Key": "other"}), 409, "conflict")
    assert len(strict_json(service.get(JOBS))["jobs"]) == 1


def test_the_same_key_after_the_study_went_on(service: Service, landscape: str, work: Work) -> None:
    once, body = {"Idempotency-Key": "x"}, {"model": landscape, "trials": 3}
    first = service.request("POST", STUDIES, json=body, headers=once).json()
    work()
    assert service.request("POST", f"{first['links']['resume']}", json={"trials": 4}).status_code == 202
    again = service.request("POST", STUDIES, json=body, headers=once)
    assert again.status_code == 202 and again.json()["id"] == first["id"]
    assert again.json()["request"]["trials"] == 4


def test_two_clients_may_have_the_same_idempotency_key(settings: ServiceSettings, service: Service) -> None:
    with Keys.open(settings.url) as keys:
        secrets = [keys.create(name, "write")[1] for name in ("ann", "bob")]
    once = {"Idempotency-Key": "1"}
    answers = [
        service.request("POST", STUDIES, json={**TEXT, "seeds": [n]}, headers={"X-API-Key": secret, **once})
        for n, secret in enumerate(secrets)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] != answers[1].json()["id"]


def test_of_many_that_ask_at_once_one_makes_the_study(service: Service) -> None:
    def ask(headers: dict[str, str]) -> tuple[int, str]:
        answer = service.request("POST", STUDIES, json=TEXT, headers=headers)
        return answer.status_code, answer.json().get("id", "")

    service.get("/readyz")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, [{"Idempotency-Key": "same"}] * 16))
        apart = list(pool.map(ask, [{"Idempotency-Key": str(number)} for number in range(8)]))
    assert set(together) == {(202, together[0][1])}
    assert set(apart) == {(409, "")}


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_an_idempotency_key_that_is_none(refusing: Service, key: str) -> None:
    answer = refusing.request("POST", STUDIES, json=TEXT, headers={"Idempotency-Key": key})
    assert "dempotency" in problem(answer, 422, "invalid-request")


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "other/model", "../x", "%2e%2e", "%252e%252e%2fetc", "a\0b", f"{HUB_MODEL}\0", "x" * 4096, HUB_MODEL[:-1],
        f"{HUB_MODEL}/", f"{HUB_MODEL}/../x", f"./{HUB_MODEL}", f" {HUB_MODEL}", HUB_MODEL.lower(), "*", "/etc/passwd",
        "file:///etc/passwd", "<script>", "ünï", HUB_MODEL.replace("-", "\N{NON-BREAKING HYPHEN}"),
    ],
)  # fmt: skip
def test_only_models_that_are_named_may_be_asked_for(refusing: Service, model: str) -> None:
    assert "FA_TUNE_MODELS" in refused(refusing, 403, "forbidden", **{**TEXT, "model": model})


def test_another_way_to_write_a_landscapes_path_is_another_model(service: Service, landscape: str) -> None:
    path = Path(landscape)
    for written in (f"{path.parent}/./{path.name}", f"{path.parent}//{path.name}", path.name, f"{path}.gz"):
        refused(service, 403, "forbidden", model=written)
    assert asked(service, model=landscape)


def test_without_named_models_there_is_none(settings: ServiceSettings) -> None:
    service = Service(create_app(settings.model_copy(update={"models": []})))
    refused(service, 403, "forbidden", **TEXT)


# --- bodies -----------------------------------------------------------------------------------------------------------

OUT_OF_BOUNDS: list[tuple[str, Any]] = [
    ("model", ""), ("model", "x" * 4097), ("model", 5), ("model", ["x"]), ("model", "\ud800"),
    ("revision", ""), ("revision", "x" * 201), ("revision", 1),
    ("prompts", [""]), ("prompts", ["x" * 8193]), ("prompts", ["x"] * 2), ("prompts", "x"), ("prompts", [1]),
    ("prompts", [str(n) for n in range(257)]), ("prompts", ["a\0b"]), ("prompts", ["  "]), ("prompts", {"0": "x"}),
    ("prompts", ["\ud800"]),
    ("holdout_prompts", ["a lake"]), ("holdout_prompts", [""]), ("holdout_prompts", ["x", "x"]),
    ("seeds", []), ("seeds", [-1]), ("seeds", [2**63]), ("seeds", [0, 0]), ("seeds", list(range(65))), ("seeds", [0.5]),
    ("seeds", 0),
    ("height", 15), ("height", 8193), ("height", 480.5), ("height", "tall"), ("height", 10**400),
    ("width", 15), ("width", 8193), ("frames", 0), ("frames", 2049), ("steps", 0), ("steps", 1001),
    ("guidance", -0.1), ("guidance", 100.1), ("guidance_2", -1), ("guidance_2", 101), ("flow_shift", -1),
    ("flow_shift", 1001), ("boundary_ratio", -0.1), ("boundary_ratio", 1.1), ("negative_prompt", "x" * 8193),
    ("image", "x"), ("image", "../../etc/passwd"), ("image", "A" * 64), ("image", "0" * 63),
    ("dtype", "int4"), ("dtype", ""), ("dtype", "fp8,fp8"), ("dtype", "x" * 41), ("dtype", 8),
    ("min_psnr", -1), ("min_psnr", 101), ("quality", "best"), ("aggregate", "p51"), ("aggregate", "median"),
    ("constraints", ["psnr"]), ("constraints", ["psnr_db<=30"]), ("constraints", ["mae<=nan"]),
    ("constraints", ["mae<=1e999"]), ("constraints", ["ssim>=0.9"] * 17), ("constraints", "ssim>=0.9"),
    ("constraints", [f"{'x' * 10_000}>=1"]), ("constraints", [f"psnr_db>={'1' * 10_000}"]),
    ("trials", 0), ("trials", 100_001), ("trials", 2.5), ("budget", "soon"), ("budget", ""), ("budget", "0s"),
    ("budget", "1" * 21), ("budget", 60), ("sampler", "best"), ("sampler_seed", -1), ("sampler_seed", 2**31),
    ("tries", ["x"]), ("tries", [""]), ("tries", ["0-999999999999/"]), ("tries", ["0/1/2"]), ("tries", ["0/"] * 65),
    ("tries", [f"{'1,' * 5000}/"]), ("tries", ["mxfp4:0/"]), ("tries", ["x" * 10_001]),
    ("repeats", 2), ("repeats", 101), ("study", ""), ("study", "x" * 201), ("study", "\0"), ("study", "a\nb"),
    ("study", " "), ("workers", 0), ("workers", 65), ("workers", 1.5), ("workers", True),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), OUT_OF_BOUNDS, ids=[f"{f}-{str(v)[:20]!a}" for f, v in OUT_OF_BOUNDS])
def test_a_value_out_of_its_bounds(refusing: Service, field: str, value: Any) -> None:
    content = json.dumps({**TEXT, field: value})
    answer = refusing.request("POST", STUDIES, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert len(answer.text) < 1000
    assert strict_json(refusing.get(JOBS)) == {"jobs": []}


@pytest.mark.parametrize(
    ("field", "value"),
    [("seeds", [0, 0]), ("holdout_prompts", ["x", "x"]), ("holdout_prompts", ["a\0b"]), ("steps", 0), ("guidance", -1)],
)
def test_a_value_out_of_its_bounds_beside_a_landscapes_own_prompts(refusing: Service, field: str, value: Any) -> None:
    refused(refusing, 422, "invalid-request", model=RECORDED, **{field: value})


@pytest.mark.parametrize("field", ["height", "seeds", "min_psnr", "workers"])
@pytest.mark.parametrize("value", ["20", True, "", {}])
def test_what_could_be_taken_for_a_number_is_none(refusing: Service, field: str, value: Any) -> None:
    refused(refusing, 422, "invalid-request", **TEXT, **{field: [value] if field == "seeds" else value})


@pytest.mark.parametrize("field", ["engine", "device", "engine_args", "storage", "study_file", "prompts_file", "x"])
def test_what_is_not_the_clients_to_say(refusing: Service, field: str) -> None:
    assert field in refused(refusing, 422, "invalid-request", **TEXT, **{field: "x"})


def test_null_is_no_value(refusing: Service) -> None:
    for field in ("revision", "prompts", "steps", "guidance", "study", "workers", "model", "min_psnr"):
        assert field in refused(refusing, 422, "invalid-request", **{**TEXT, field: None})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
@pytest.mark.parametrize("field", ["guidance", "min_psnr", "flow_shift", "steps", "seeds"])
def test_numbers_that_are_none(refusing: Service, field: str, number: str) -> None:
    written = f"[{number}]" if field == "seeds" else number
    content = f'{{"model": "{HUB_MODEL}", "prompts": ["x"], "{field}": {written}}}'
    answer = refusing.request("POST", STUDIES, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert strict_json(refusing.get(JOBS)) == {"jobs": []}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422), (b"{", 422), (b"null", 422), (b"[]", 422), (b'"x"', 422), (b"\xff\xfe", 422),
        (b'{"model": "a"} x', 422), (b"[" * 100_000, 400), (b'{"model":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"prompts": [' + b'"x",' * 250_000 + b'"x"]}', 422), (b" " * (2**20 + 1), 413),
        (b'{"model": "' + b"x" * 2**20 + b'"}', 413),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_a_body_that_is_no_request(refusing: Service, content: bytes, status: int) -> None:
    answer = refusing.request("POST", STUDIES, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json" and len(answer.text) < 1000
    assert strict_json(refusing.get(JOBS)) == {"jobs": []}


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_of_another_kind(refusing: Service, media_type: str | None) -> None:
    """What a foreign page's form could send is no request either."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    answer = refusing.request("POST", STUDIES, content=json.dumps(TEXT), headers=headers)
    assert answer.status_code == 422, answer.text
    assert strict_json(refusing.get(JOBS)) == {"jobs": []}


def test_a_picture_that_was_not_sent(refusing: Service) -> None:
    assert "/api/v1/images" in refused(refusing, 422, "invalid-request", **TEXT, image="0" * 64)


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_waiting_study_is_cancelled_at_once(service: Service, landscape: str, work: Work) -> None:
    job = asked(service, model=landscape)
    answer = service.request("POST", job["links"]["cancel"])
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert answer.headers["location"] == job["links"]["study"]
    work()
    assert strict_json(service.get(job["links"]["study"]))["state"] == "cancelled"
    problem(service.request("POST", job["links"]["cancel"]), 409, "conflict")


def test_a_running_study_is_cancelled_after_its_policy(
    service: Service, landscape: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_tuner.worker.loop.POLL_SECONDS", 0)
    job = asked(service, model=landscape, trials=20)
    states: list[str] = []

    def once() -> None:
        if not states:
            running = strict_json(service.get(job["links"]["study"]))
            states.extend((running["state"], running["job"]["state"]))
            problem(service.request("POST", job["links"]["resume"]), 409, "conflict")
            for _ in range(2):  # asked twice is asked once
                states.append(service.request("POST", job["links"]["cancel"]).json()["state"])

    work(evaluated=once)
    assert states == ["running", "running", "cancelling", "cancelling"]
    document = strict_json(service.get(job["links"]["study"]))
    assert (document["state"], document["job"]["state"]) == ("interrupted", "cancelled")
    assert 0 < document["evaluated"] < 5  # what was measured stays
    problem(service.request("POST", job["links"]["cancel"]), 409, "conflict")


def test_what_has_ended_cannot_be_cancelled(service: Service, landscape: str, work: Work) -> None:
    job = asked(service, model=landscape, trials=2)
    work()
    assert "finished" in problem(service.request("POST", job["links"]["cancel"]), 409, "conflict")


@pytest.mark.parametrize("what", ["cancel", "resume"])
def test_what_was_not_asked_for_can_be_neither_cancelled_nor_resumed(service: Service, store: Store, what: str) -> None:
    path = add_study(store, "s")  # as `fa-tune run` makes one
    detail = problem(service.request("POST", f"{path}/{what}"), 404, "not-found")
    assert "fa-tune run" in detail
    problem(service.request("POST", f"{STUDIES}/{'0' * 16}/{what}"), 404, "not-found")
    for no_id in ("s", "A" * 16, "0" * 17, quote("../x", safe=""), "%00"):
        assert service.request("POST", f"{STUDIES}/{no_id}/{what}").status_code in (404, 422)


# --- resume -----------------------------------------------------------------------------------------------------------


def test_a_finished_study_goes_on_to_a_higher_target(service: Service, landscape: str, work: Work) -> None:
    job = asked(service, model=landscape, trials=3)
    work()
    answer = service.request("POST", job["links"]["resume"], json={"trials": 5, "min_psnr": 20})
    assert answer.status_code == 202 and answer.headers["location"] == job["links"]["study"]
    resumed = strict_json(answer)
    assert (resumed["state"], resumed["reason"]) == ("queued", "")
    assert resumed["request"] == {"model": landscape, "trials": 5, "min_psnr": 20}
    problem(service.request("POST", job["links"]["resume"]), 409, "conflict")
    work()
    document = strict_json(service.get(job["links"]["study"]))
    assert (document["state"], document["evaluated"], document["requirement"]) == ("finished", 5, ["psnr_db>=20"])


@pytest.mark.parametrize("body", [None, {}])
def test_a_cancelled_study_goes_on_as_it_was(service: Service, landscape: str, work: Work, body: Any) -> None:
    job = asked(service, model=landscape, trials=3)
    service.request("POST", job["links"]["cancel"])
    more = {} if body is None else {"json": body}
    resumed = service.request("POST", job["links"]["resume"], **more)
    assert (resumed.status_code, resumed.json()["request"]) == (202, job["request"])
    work()
    assert strict_json(service.get(job["links"]["study"]))["state"] == "finished"


@pytest.mark.parametrize(
    "terms",
    [
        {"trials": 0}, {"min_psnr": 101}, {"quality": "best"}, {"constraints": ["x"]}, {"budget": "soon"},
        {"aggregate": "p0"}, {"model": "x"}, {"prompts": ["x"]}, {"workers": 2}, {"study": "x"}, {"trials": None},
    ],
)  # fmt: skip
def test_terms_that_a_study_cannot_get(service: Service, terms: dict[str, Any]) -> None:
    job = asked(service, **TEXT)
    service.request("POST", job["links"]["cancel"])
    problem(service.request("POST", job["links"]["resume"], json=terms), 422, "invalid-request")
    assert strict_json(service.get(job["links"]["study"]))["state"] == "cancelled"


def test_a_higher_target_lifts_a_budget_that_is_not_given_anew(service: Service) -> None:
    """One that is spent would end the study before it goes on."""
    job = asked(service, **TEXT, budget="10m")
    for body, budget in (({}, "10m"), ({"trials": 9, "budget": "1h"}, "1h"), ({"trials": 10}, None)):
        service.request("POST", job["links"]["cancel"])
        answer = service.request("POST", job["links"]["resume"], json=body)
        assert strict_json(answer)["request"].get("budget") == budget


@pytest.mark.parametrize("revision", ["refs/pr/7", "a\0b", "", "../x", "a b", "x" * 201])
def test_a_revision_is_a_branch_a_tag_or_a_commit(service: Service, revision: str) -> None:
    problem(service.request("POST", STUDIES, json={**TEXT, "revision": revision}), 422, "invalid-request")


def test_a_model_that_may_not_be_asked_for_any_more_is_not_resumed(settings: ServiceSettings, service: Service) -> None:
    job = asked(service, **TEXT)
    service.request("POST", job["links"]["cancel"])
    stricter = Service(create_app(settings.model_copy(update={"models": []})))
    problem(stricter.request("POST", job["links"]["resume"]), 403, "forbidden")


# --- the list ---------------------------------------------------------------------------------------------------------


def test_jobs_come_in_pages_newest_first(service: Service) -> None:
    for number in range(5):
        asked(service, **TEXT, study=str(number))
        if number % 2:
            service.request("POST", f"{STUDIES}/{study_id(str(number))}/cancel")
    path, pages = f"{JOBS}?limit=2", []
    while path:
        document = strict_json(service.get(path))
        pages.append([job["study"] for job in document["jobs"]])
        path = document.get("next", "")
        asked(service, **TEXT, study=f"later {len(pages)}")  # moves none to another page
    assert pages == [["4", "3"], ["2", "1"], ["0"]]
    only = strict_json(service.get(JOBS, {"state": "cancelled", "limit": 1}))
    assert [job["study"] for job in only["jobs"]] == ["3"]
    assert [job["study"] for job in strict_json(service.get(only["next"]))["jobs"]] == ["1"]
    assert strict_json(service.get(JOBS, {"state": "finished"})) == {"jobs": []}


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"cursor": "!"}, {"cursor": "LTE"}, {"state": "done"}, {"page": 2}]
)
def test_a_page_of_jobs_that_there_cannot_be(service: Service, query: dict[str, Any]) -> None:
    problem(service.get(JOBS, query), 422, "invalid-request")


# --- what a failed one says -------------------------------------------------------------------------------------------


def test_a_threshold_above_the_noise_floor(service: Service, landscape: str, work: Work) -> None:
    noisy_landscape(Path(landscape), 25.0)
    job = asked(service, model=landscape, min_psnr=60)
    work()
    failed = strict_json(service.get(job["links"]["study"]))["job"]
    assert (failed["state"], failed["problem"]) == ("failed", "urn:fa-tune:threshold-above-noise-floor")
    assert "noise floor" in failed["reason"]
    assert failed["attempts"] == 0  # another would end the same
    lower = service.request("POST", job["links"]["resume"], json={"min_psnr": 10, "trials": 3})
    assert lower.status_code == 202 and "problem" not in lower.json()
    work()
    assert strict_json(service.get(job["links"]["study"]))["job"]["state"] == "finished"


def test_a_landscape_that_the_worker_does_not_have(service: Service, landscape: str, work: Work) -> None:
    job = asked(service, model=landscape)
    Path(landscape).unlink()
    work()
    answer = service.get(job["links"]["study"])
    failed = strict_json(answer)
    assert failed["state"] == "failed" and landscape in failed["reason"]
    assert failed["job"]["problem"] == "urn:fa-tune:not-found"
    assert strict_json(service.get(JOBS, {"state": "failed"}))["jobs"] == [failed["job"]]


def test_an_engine_that_fails_is_tried_again(
    service: Service, settings: ServiceSettings, landscape: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_tuner.store.leases.RETRY_SECONDS", 0)
    job = asked(service, **TEXT)
    work(engine="no-such-engine")
    failed = strict_json(service.get(job["links"]["study"]))["job"]
    assert failed["state"] == "failed" and "no-such-engine" in failed["reason"]
    assert Jobs(service.app.state.backing.database).job(job["id"]).attempts == failed["attempts"]
