"""From a question about a model to a recommendation, over everything that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fa_tuner.domain.errors import NotFoundError, NothingQualifiesError, NotQuantizedError, ThresholdError
from fa_tuner.domain.measurement import Requirement
from fa_tuner.domain.study import Evaluation, Recommendation, Study
from fa_tuner.recommend.choice import best, candidates, check_floor, faster_by_fit


class Studies(Protocol):
    """What this room needs of the store."""

    def study(self, name: str) -> Study: ...
    def studies(self, model: str | None = None) -> list[Study]: ...
    def evaluations(self, name: str) -> list[Evaluation]: ...


@dataclass(frozen=True)
class Question:
    """Which selectors for this model and workload? A field that is None matches any value."""

    model: str
    requirement: Requirement | None = None
    dtype: str | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None

    def matches(self, study: Study) -> bool:
        work = study.spec.workload
        return (
            work.model == self.model
            and (self.dtype is None or self.dtype in study.spec.dtypes)
            and all(
                getattr(self, name) is None or getattr(work, name) == getattr(self, name)
                for name in ("steps", "height", "width", "frames")
            )
        )


def recommend_from(
    study: Study, evaluations: list[Evaluation], requirement: Requirement | None, dtype: str | None = None
) -> Recommendation:
    """The best measured policy of one study for a requirement (default: the study's own), of `dtype` where one is
    given.

    Raises:
        NothingQualifiesError, ThresholdError: see `choice.best` and `choice.check_floor`.
    """
    if study.state == "unproven":
        raise NotQuantizedError(f"study {study.spec.name} cannot be trusted: {study.reason}")
    wanted = requirement.beside(study.spec.requirement) if requirement else study.spec.requirement
    if study.baseline is None:
        raise NothingQualifiesError(f"study {study.spec.name} has no baseline yet; run it first")
    check_floor(wanted, study.baseline)
    measured = candidates(e for e in evaluations if dtype is None or e.policy.is_native or e.policy.dtype == dtype)
    chosen = best(measured, wanted)
    return Recommendation(
        study=study,
        evaluation=chosen.evaluation,
        measurement=chosen.measurement,
        requirement=wanted,
        holdout_met=chosen.holdout_met(wanted),
        notes=_notes(study, chosen.measurement.holdout != (), faster_by_fit(measured, wanted, chosen)),
    )


def recommend(store: Studies, question: Question) -> Recommendation:
    """The answer of the newest matching study that has one. Generates nothing.

    Raises:
        NotFoundError: no study matches.
        NothingQualifiesError, ThresholdError: studies match, but none has such a policy.
    """
    matching = [s for s in store.studies(question.model) if question.matches(s)]
    if not matching:
        known = sorted({s.spec.workload.model for s in store.studies()})
        raise NotFoundError(
            f"no study matches model {question.model} with what was asked"
            + (
                f"; there are studies of {', '.join(known)}"
                if known
                else "; there is no study yet, `fa-tune run` makes one"
            )
        )
    refused: Exception | None = None
    for study in matching:
        try:
            return recommend_from(study, store.evaluations(study.spec.name), question.requirement, question.dtype)
        except (NothingQualifiesError, NotQuantizedError, ThresholdError) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _notes(study: Study, checked: bool, untimed: int) -> tuple[str, ...]:
    spec, notes = study.spec, []
    if spec.latency_source == "projected":
        notes.append(
            f"latency is projected from device profile {spec.latency_profile}; nothing was timed on that device"
        )
    if spec.environment["operator"] == "emulated":
        notes.append("the quantized operator was emulated in PyTorch; quality on the device is not proven")
    if spec.environment["operator"] == "replayed":
        notes.append("figures were replayed from a recorded landscape")
    if not checked:
        notes.append(
            "not checked on held-out prompts"
            + ("" if spec.workload.holdout else "; the study has none (--holdout-prompt)")
        )
    if untimed:
        notes.append(
            f"{untimed} of the policies that meet it are faster by their fitted latency; a further run times them"
        )
    if study.state != "finished":
        notes.append(f"the study is {study.state}; a longer search may find better")
    return tuple(notes)
