"""Studies in pages, their fronts, trials and sensitivities, and exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Evaluation, study_id
from fa_tuner.store.repository import Store
from fa_tuner.store.rows import digest
from tests.support.measured import GRID
from tests.support.service import Service, problem, strict_json
from tests.support.stored import STUDIES, add_study

Tuned = Callable[..., str]


def walked(service: Service, path: str, key: str) -> list[list[Any]]:
    """All pages, by following their links."""
    pages = []
    while path:
        document = strict_json(service.get(path))
        assert ("next" in document) is ("next_cursor" in document)
        pages.append(document[key])
        path = document.get("next", "")
    return pages


# --- the list -----------------------------------------------------------------------------------------------------


def test_no_study_yet(service: Service) -> None:
    assert strict_json(service.get(STUDIES)) == {"studies": []}


def test_studies_come_in_pages_newest_first(service: Service, store: Store) -> None:
    for number in range(5):
        add_study(store, f"s/{number}", "wan" if number % 2 else "hunyuan")
    pages = walked(service, f"{STUDIES}?limit=2", "studies")
    assert [[one["study"] for one in page] for page in pages] == [["s/4", "s/3"], ["s/2", "s/1"], ["s/0"]]
    assert [one["id"] for page in pages for one in page] == [study_id(f"s/{number}") for number in range(4, -1, -1)]
    only = walked(service, f"{STUDIES}?limit=1&model=wan&state=running", "studies")
    assert [[one["study"] for one in page] for page in only] == [["s/3"], ["s/1"]]
    assert strict_json(service.get(STUDIES, {"state": "finished"})) == {"studies": []}


def test_a_study_that_is_added_meanwhile_moves_none(service: Service, store: Store) -> None:
    for number in range(4):
        add_study(store, str(number))
    first = strict_json(service.get(f"{STUDIES}?limit=2"))
    add_study(store, "newer")
    second = strict_json(service.get(f"{STUDIES}", {"limit": 2, "cursor": first["next_cursor"]}))
    assert [one["study"] for one in first["studies"] + second["studies"]] == ["3", "2", "1", "0"]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"cursor": "!"}, "cursor"), ({"cursor": "é"}, "cursor"),
        ({"cursor": "LTE"}, "cursor"), ({"cursor": "x" * 65}, "cursor"), ({"cursor": ""}, "cursor"),
        ({"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk"}, "cursor"), ({"state": "done"}, "state"), ({"page": 2}, "page"),
    ],
)  # fmt: skip
def test_a_page_that_there_cannot_be(service: Service, asked: dict[str, Any], word: str) -> None:
    assert word in problem(service.get(STUDIES, asked), 422, "invalid-request")


# --- one ------------------------------------------------------------------------------------------------------------


def test_a_study_with_its_links(service: Service, store: Store) -> None:
    path = add_study(store, "a/b \N{SNOWMAN}", count=9)
    document = strict_json(service.get(path))
    assert (document["study"], document["evaluated"], document["state"]) == ("a/b \N{SNOWMAN}", 8, "running")
    assert document["noise_floor_db"] == 90
    links = document["links"]
    assert links["self"] == path
    for link in (links["front"], links["trials"], links["sensitivity"], *links["exports"].values()):
        assert service.get(link).status_code == 200, link


def test_a_study_without_figures(service: Service, store: Store) -> None:
    path = add_study(store, "new")
    document = strict_json(service.get(path))
    assert document["evaluated"] == 0 and "noise_floor_db" not in document
    assert strict_json(service.get(f"{path}/front"))["front"] == []
    assert strict_json(service.get(f"{path}/trials")) == {"trials": []}
    assert "no baseline yet" in problem(service.get(f"{path}/export"), 404, "nothing-qualifies")
    assert "0 of fp8" in problem(service.get(f"{path}/sensitivity"), 404, "not-found")


@pytest.mark.parametrize("part", ["", "/front", "/trials", "/sensitivity", "/export"])
def test_a_study_that_is_not_there(service: Service, store: Store, part: str) -> None:
    path = add_study(store, "s", count=9)
    for missing in (study_id("other"), "0" * 16):
        problem(service.get(f"{STUDIES}/{missing}{part}"), 404, "not-found")
    for no_id in ("s", "x" * 16, "A" * 16, "0" * 17, quote("../../etc/passwd", safe=""), "%00", "..%2f"):
        assert service.get(f"{STUDIES}/{no_id}{part}").status_code in (404, 422)
    assert service.get(path + part).status_code == 200
    store.delete_study("s")
    problem(service.get(path + part), 404, "not-found")


def test_the_front_is_the_command_lines(service: Service, store: Store) -> None:
    document = strict_json(service.get(f"{add_study(store, 's', count=9)}/front"))
    latencies = [point["latency"]["relative"] for point in document["front"]]
    assert latencies == sorted(latencies) and len(latencies) > 3
    assert all(point["feasible"] for point in document["front"])
    assert document["recommended"]["policy"] == document["front"][0]["policy"]
    assert document["recommended"]["policy"]["id"] == digest("fp8:3/")


def test_trials_come_in_pages_failed_ones_too(service: Service, store: Store) -> None:
    path = add_study(store, "s", count=4)
    store.add_evaluation("s", Evaluation(SkipPolicy("fp8", SkipSelector((5,))), "sampler", 4, None, "out of memory"))
    pages = walked(service, f"{path}/trials?limit=2", "trials")
    assert [[trial["number"] for trial in page] for page in pages] == [[0, 1], [2, 3], [4]]
    failed = pages[-1][0]
    assert failed["failed"] and failed["reason"] == "out of memory" and "latency" not in failed
    problem(service.get(f"{path}/trials?limit=2&cursor=LTE"), 422, "invalid-request")


# --- sensitivity ----------------------------------------------------------------------------------------------------


def test_sensitivities_are_shares_by_prompt_and_dtype(service: Service, tuned: Tuned, store: Store) -> None:
    tuned(trials=14, study="s")
    document = strict_json(service.get(f"{STUDIES}/{study_id('s')}/sensitivity"))
    assert (document["steps"], document["layers"]) == (list(range(6)), list(range(4)))
    assert document["measured"] == store.count("s") - 1
    assert [prompt["prompt"] for prompt in document["prompts"]] == list(store.study("s").spec.workload.prompts)
    for prompt in document["prompts"]:
        (of_fp8,) = prompt["dtypes"]
        assert of_fp8["dtype"] == "fp8"
        assert len(of_fp8["steps"]) == 6 and sum(of_fp8["steps"]) == pytest.approx(1)
        assert len(of_fp8["layers"]) == 4 and sum(of_fp8["layers"]) == pytest.approx(1)


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "media_type", "suffix"),
    [
        ("deploy", "application/yaml", "yaml"), ("stage-args", "application/yaml", "yaml"),
        ("flags", "text/plain; charset=utf-8", "txt"),
    ],
)  # fmt: skip
def test_an_export_and_its_tag(service: Service, store: Store, format_: str, media_type: str, suffix: str) -> None:
    study = "a\N{SNOWMAN}; b/../c"
    path = f"{add_study(store, study, count=9)}/export"
    response = service.get(path, {"format": format_})
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    name = f"fa-tune-{study_id(study)}-{format_}.{suffix}"
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert '"3"' in response.text
    tag = response.headers["etag"]
    assert tag.startswith('"')
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = service.get(path, {"format": format_}, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for other in ('"other"', "", tag.strip('"')):
        assert service.get(path, {"format": format_}, headers={"If-None-Match": other}).status_code == 200
    assert service.get(path, {"format": format_, "min_psnr": 38}).headers["etag"] != tag


def test_the_policy_that_is_named_is_exported(service: Service, store: Store) -> None:
    path = f"{add_study(store, 's', count=9)}/export"
    for text in ("0/1", "/"):
        key = SkipPolicy.parse(text, ("fp8",), GRID).key
        exported = service.get(path, {"policy": digest(key), "min_psnr": 37}).text
        steps, _, layers = text.partition("/")
        stage = yaml.safe_load(exported)["platforms"]["npu"]["stages"][0]
        assert stage["diffusion_kv_cache_skip_steps"] == steps
        assert stage["diffusion_kv_cache_skip_layers"] == layers
        assert f"chosen by hand; it {'meets' if text == '/' else 'misses'} psnr_db>=37" in " ".join(exported.split())


@pytest.mark.parametrize(
    ("asked", "status", "kind"),
    [
        ({"format": "json"}, 422, "invalid-request"),
        ({"policy": "x"}, 422, "invalid-request"),
        ({"policy": "0" * 64}, 404, "not-found"),
        ({"policy": digest("native")}, 404, "nothing-qualifies"),
        ({"min_psnr": 60}, 404, "nothing-qualifies"),
        ({"min_psnr": 95}, 422, "threshold-above-noise-floor"),
        ({"stage_id": -1}, 422, "invalid-request"),
        ({"stage_id": 1000}, 422, "invalid-request"),
        ({"vllm_omni_version": "soon"}, 422, "invalid-request"),
        ({"vllm_omni_version": "0.30", "format": "stage-args"}, 422, "invalid-request"),
        ({"into": "/etc/passwd"}, 422, "invalid-request"),
    ],
)
def test_an_export_that_there_is_not(
    service: Service, store: Store, asked: dict[str, Any], status: int, kind: str
) -> None:
    problem(service.get(f"{add_study(store, 's', count=9)}/export", asked), status, kind)
