"""Where things are, as paths below the service's root."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fa_tuner.domain.policy import NATIVE
from fa_tuner.domain.study import Recommendation, study_id
from fa_tuner.export import EXPORTERS
from fa_tuner.store.rows import digest

ROOT = "/api/v1"
IMAGES = f"{ROOT}/images"


def study_path(name: str) -> str:
    return f"{ROOT}/studies/{study_id(name)}"


def study_links(name: str) -> dict[str, Any]:
    here = study_path(name)
    parts = {part: f"{here}/{part}" for part in ("front", "trials", "sensitivity", "events")}
    return {"self": here, **parts, "exports": {format_: f"{here}/export?format={format_}" for format_ in EXPORTERS}}


def recommendation_links(recommendation: Recommendation) -> dict[str, Any]:
    """The exports are of this policy, with this requirement."""
    spec, policy = recommendation.study.spec, digest(recommendation.policy.key)
    here, wanted = study_path(spec.name), recommendation.requirement
    bounds = [
        ("policy", policy),
        *(("constraint", str(c)) for c in wanted.constraints),
        ("aggregate", wanted.aggregate),
    ]
    generated = spec.environment.get("operator") != "replayed"
    cases = range(len(spec.workload.cases)) if generated else ()
    return {
        "study": here,
        "front": f"{here}/front",
        "exports": {name: f"{here}/export?{urlencode([('format', name), *bounds])}" for name in EXPORTERS},
        "evidence": [
            {
                "case": case,
                **{f"baseline_{what}": case_path(spec.name, digest(NATIVE), case, what) for what in ("frames", "clip")},
                **{what: case_path(spec.name, policy, case, what) for what in ("frames", "clip")},
            }
            for case in cases
        ],
    }


def case_path(name: str, policy_digest: str, case: int, what: str) -> str:
    return f"{study_path(name)}/policies/{policy_digest}/cases/{case}/{what}"
