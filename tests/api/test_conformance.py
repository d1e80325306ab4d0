"""What the OpenAPI document says is what the service does: every operation, with what fits the document and what does
not."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from fa_tuner_api import create_app
from fa_tuner_api.openapi import snapshot
from schemathesis.specs.openapi import checks

from fa_tuner.domain.study import study_id
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.settings import ServiceSettings, load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.keys import Keys
from fa_tuner.store.repository import Store
from fa_tuner.store.rows import digest
from fa_tuner.tuning import tune
from tests.support.observers import Silent
from tests.support.service import Service
from tests.support.stored import HUB_MODEL, STUDIES, add_study

A_PICTURE = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)
STUDY_IDS = [*map(study_id, ("tuned", "begun", "queued", "cancelled")), "0" * 16]
PICTURE = hashlib.sha256(A_PICTURE).hexdigest()
POLICY_IDS = [digest("native"), digest("fp8:/"), "0" * 64]


# Of what a schema cannot tell in full, such as that prompts differ: some that is right.
RIGHT: dict[str, dict[str, Any]] = {
    "constraint": {"items": {"enum": ["ssim>=0.95", "mae<=9"]}}, "constraints": {"items": {"enum": ["ssim>=0.95"]}},
    "cursor": {"enum": ["Mg"]}, "vllm_omni_version": {"enum": ["0.30"]}, "engine_version": {"enum": ["0.30"]},
    "prompts": {"items": {"pattern": "^[a-m]{1,9}$", "type": "string"}, "uniqueItems": True, "minItems": 1},
    "holdout_prompts": {"items": {"pattern": "^[n-z]{1,9}$", "type": "string"}, "uniqueItems": True},
    "seeds": {"uniqueItems": True, "items": {"type": "integer", "minimum": 0, "maximum": 2**53}},
    "study": {"pattern": "^[a-z]{1,9}$"}, "dtype": {"enum": ["fp8", "mxfp8,mxfp4"]},
    "budget": {"enum": ["90s", "1h30m"]}, "tries": {"items": {"enum": ["0,1/0", "/"]}}, "image": {"enum": [PICTURE]},
}  # fmt: skip


def document(right: bool = False) -> dict[str, Any]:
    """As it is published, but with ids and a model that there are; `right` has it tell more than a schema can."""
    found: dict[str, Any] = json.loads(snapshot())
    named: dict[str, dict[str, Any]] = {"study_id": {"enum": STUDY_IDS}, "policy_id": {"enum": POLICY_IDS}}
    schemas = found["components"]["schemas"]
    for operations in found["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                more = RIGHT if right and parameter["name"] != "dtype" else {}
                parameter["schema"].update({**named, **more}.get(parameter["name"], {}))
            for answer in operation["responses"].values():
                answer.get("content", {}).pop("text/event-stream", None)  # schemathesis checks each event by it
    schemas["StudyRequest"]["properties"]["model"]["enum"] = [HUB_MODEL, "other/model"]
    if right:
        for request in (schemas["StudyRequest"], schemas["Terms"]):
            for name, field in request["properties"].items():
                field.update(RIGHT.get(name, {}))
    return found


def schema_of(found: dict[str, Any], *modes: schemathesis.GenerationMode) -> Any:
    schema = schemathesis.openapi.from_dict(found)
    schema.config.generation.with_security_parameters = False  # the keys are ours
    schema.config.generation.modes = list(modes)
    rejected = schema.config.checks.negative_data_rejection
    rejected.expected_statuses = [*rejected.expected_statuses, "413"]  # what is too long is refused before it is read
    return schema


PUBLISHED = schema_of(document(), schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
ONLY_RIGHT = schema_of(document(right=True), schemathesis.GenerationMode.POSITIVE)
CHECKS = [
    schemathesis.checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_headers_conformance, checks.response_schema_conformance, checks.negative_data_rejection,
    checks.unsupported_method, checks.allow_header_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a study that was tuned, one that was begun, one that waits and one that was cancelled."""
    folder = tmp_path_factory.mktemp("populated")
    model = folder / "landscape.json"
    synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3).write(model)
    settings = ServiceSettings(
        storage=f"sqlite:///{folder}/fa-tune.db", artifacts=str(folder / "artifacts"), models=[HUB_MODEL],
        ready_without_worker=True,
    )  # fmt: skip
    with Store.open(settings.url) as store:
        chosen = load_run_settings({"engine": "replay", "model": str(model), "study": "tuned", "trials": 14})
        tune(chosen.request(), store, Artifacts(settings.artifact_root, 2**20), Silent(), settings.url)
        add_study(store, "begun", count=4)
    app = create_app(settings)
    app.closing = True  # streams end after what they have to say at once
    service = Service(app)
    for name in ("queued", "cancelled"):
        asked = {"model": HUB_MODEL, "prompts": ["x"], "study": name}
        assert service.request("POST", STUDIES, json=asked).status_code == 202
    service.request("POST", f"{STUDIES}/{study_id('cancelled')}/cancel")
    Artifacts(settings.artifact_root, 2**20).put_image(A_PICTURE)
    yield service
    app.state.backing.close()
    app.access.close()


@pytest.fixture(scope="module")
def write_key(populated: Service) -> dict[str, str]:
    with Keys.open(populated.app.settings.url) as keys:  # type: ignore[attr-defined]
        return {"Authorization": f"Bearer {keys.create('ann', 'write')[1]}"}


def sent(service: Service, case: schemathesis.Case, headers: dict[str, str]) -> httpx.Response:
    given = case.as_transport_kwargs(base_url="http://127.0.0.1", headers=headers)
    names = ("method", "url", "params", "headers", "data", "json", "files")
    prepared = requests.Request(**{name: given[name] for name in names if given.get(name) is not None}).prepare()
    encoded = [(name.encode(), _bytes(value)) for name, value in prepared.headers.items()]
    return service.request(prepared.method or "", prepared.url or "", headers=encoded, content=prepared.body)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")


def conforms(schema: Any, examples: int) -> Any:
    """Each operation, by so many requests beside those that go along the bounds of its parameters."""
    chosen = hypothesis.settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )  # fmt: skip
    return lambda test: schema.parametrize()(chosen(test))


@conforms(PUBLISHED, 25)
def test_it_does_what_the_document_says(case: schemathesis.Case, populated: Service, write_key: dict[str, str]) -> None:
    case.validate_response(sent(populated, case, write_key), checks=CHECKS)


@conforms(ONLY_RIGHT, 25)
def test_it_takes_what_is_right(case: schemathesis.Case, populated: Service, write_key: dict[str, str]) -> None:
    case.validate_response(sent(populated, case, write_key), checks=[*CHECKS, checks.positive_data_acceptance])


@conforms(PUBLISHED, 5)
def test_without_a_key_it_says_so_as_documented(
    case: schemathesis.Case, populated: Service, write_key: dict[str, str]
) -> None:
    answer = sent(populated, case, {})
    assert case.operation.path == "/healthz" or answer.status_code in (401, 413)
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.slow
@conforms(PUBLISHED, 200)
def test_it_does_what_the_document_says_for_long(
    case: schemathesis.Case, populated: Service, write_key: dict[str, str]
) -> None:
    case.validate_response(sent(populated, case, write_key), checks=CHECKS)
