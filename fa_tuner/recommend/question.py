"""From a question about a model to a recommendation, over everything that is stored.

What must match: model and revision, task, size, frames, steps, guidance on or off, device, engine and its major.minor
version, dtype and the source of the latency; a field left out matches any value.

Which study answers, where several match: a finished one before others; then one whose recommended policy passed on
held-out prompts before one whose policy was not checked; then one with more prompts; then the one whose last figure is
newer. A study without a policy that meets the requirement is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Protocol

from fa_tuner.domain.errors import NothingQualifiesError, NotQuantizedError, ThresholdError
from fa_tuner.domain.measurement import Requirement
from fa_tuner.domain.study import Difference, Evaluation, Recommendation, Study
from fa_tuner.recommend.choice import best, candidates, check_floor, faster_by_fit
from fa_tuner.recommend.matching import Nearest, NoMatchError, Question, distance

OfStudy = Callable[[Study, Requirement | None, str | None], Recommendation]  # the last is a dtype
NEAREST = 5
MOST_MODELS_NAMED = 20
REFUSALS = (NothingQualifiesError, NotQuantizedError, ThresholdError)


class Studies(Protocol):
    """What this room needs of the store."""

    def studies(self, model: str | None = None) -> list[Study]: ...
    def models(self) -> list[str]: ...
    def evaluations(self, name: str) -> list[Evaluation]: ...
    def is_checked(self, name: str) -> bool: ...


def answer_of(store: Studies, study: Study, requirement: Requirement | None, dtype: str | None) -> Recommendation:
    """`recommend_from` what the store has of the study."""
    return recommend_from(study, store.evaluations(study.spec.name), requirement, dtype)


def recommend_from(
    study: Study, evaluations: list[Evaluation], requirement: Requirement | None, dtype: str | None = None
) -> Recommendation:
    """The best measured policy of one study for a requirement (default: the study's own), of `dtype` where one is
    given.

    Raises:
        NothingQualifiesError, ThresholdError: see `choice.best` and `choice.check_floor`.
        NotQuantizedError: the study is unproven.
    """
    wanted = _wanted(study, requirement)
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


def chosen_by_hand(study: Study, evaluation: Evaluation, requirement: Requirement | None) -> Recommendation:
    """A policy that somebody picked, with its evidence; the notes say where it misses the requirement.

    Raises:
        NothingQualifiesError: its evaluation failed.
        NotQuantizedError: the study is unproven.
    """
    wanted, measurement = _wanted(study, requirement), evaluation.measurement
    if measurement is None:
        raise NothingQualifiesError(f"{evaluation.policy} was not measured: {evaluation.reason}")
    met = wanted.met_by(measurement.holdout) if measurement.holdout else None
    missed = not wanted.met_by(measurement.cases) or met is False
    note = f"chosen by hand; it {'misses' if missed else 'meets'} {wanted}"
    notes = (note, *_notes(study, measurement.holdout != (), 0))
    return Recommendation(study, evaluation, measurement, wanted, met, notes)


def recommend(
    store: Studies, question: Question, allow_nearest: bool = False, of_study: OfStudy | None = None
) -> Recommendation:
    """The answer of the study that the module's rule names, from what is stored; generates nothing. With
    `allow_nearest` that of the nearest study of the model where none matches, and the answer's `differences` say so.
    `of_study` gives a study's own answer, as `answer_of` does, which is the default.

    Raises:
        NoMatchError: no study matches.
        NothingQualifiesError, ThresholdError, NotQuantizedError: studies match, but none has such a policy.
    """
    answer = of_study or partial(answer_of, store)
    compared = [Nearest(study, question.differences(study)) for study in store.studies(question.model)]
    if matching := [near.study for near in compared if not near.differences]:
        return _first_of(store, matching, question, answer)
    nearest = _by_distance(compared)
    if allow_nearest and nearest:
        return _nearest_of(nearest, question, answer)
    raise _no_match(store, question, nearest)


def _first_of(store: Studies, matching: list[Study], question: Question, answer: OfStudy) -> Recommendation:
    """By the module's rule. Studies are asked in the order in which they would win, and no more than must be."""
    refused: Exception | None = None
    finished = [study for study in matching if study.state == "finished"]
    for group in (finished, [study for study in matching if study.state != "finished"]):
        unchecked: Recommendation | None = None
        for study in _ranked(group):
            if unchecked is not None and not store.is_checked(study.spec.name):
                continue  # could not have passed
            try:
                found = answer(study, question.requirement, question.dtype)
            except REFUSALS as error:
                refused = refused or error
                continue
            if found.holdout_met:
                return found
            unchecked = unchecked or found
        if unchecked is not None:
            return unchecked
    assert refused is not None
    raise refused


def _nearest_of(nearest: list[Nearest], question: Question, answer: OfStudy) -> Recommendation:
    """Of the nearest study that has an answer."""
    refused: Exception | None = None
    for near in nearest:
        dtype = question.dtype if question.dtype in near.study.spec.dtypes else None  # else no policy would be left
        try:
            found = answer(near.study, question.requirement, dtype)
        except REFUSALS as error:
            refused = refused or error
        else:
            note = f"no study matches what was asked; this is of the nearest, with {_said(near)}"
            return replace(found, notes=(note, *found.notes), differences=near.differences)
    assert refused is not None
    raise refused


def _ranked(studies: list[Study]) -> list[Study]:
    """More prompts first, then the newer figures; of equal ones the order in which they come."""
    newest = sorted(studies, key=lambda study: study.updated, reverse=True)
    return sorted(newest, key=lambda study: -len(study.spec.workload.prompts))


def _wanted(study: Study, requirement: Requirement | None) -> Requirement:
    if study.state == "unproven":
        raise NotQuantizedError(f"study {study.spec.name} cannot be trusted: {study.reason}")
    return requirement.beside(study.spec.requirement) if requirement else study.spec.requirement


def _by_distance(compared: list[Nearest]) -> list[Nearest]:
    """The nearest first; of equally near ones by the module's rule, as far as it goes without an answer."""
    of = {near.study.spec.name: near for near in compared}
    order = sorted(_ranked([near.study for near in compared]), key=lambda study: study.state != "finished")
    return sorted((of[study.spec.name] for study in order), key=distance)


def _no_match(store: Studies, question: Question, nearest: list[Nearest]) -> NoMatchError:
    said = f"no study matches model {question.model} with what was asked"
    if nearest:
        first = nearest[0]
        return NoMatchError(
            f"{said}; the nearest is study {first.study.spec.name}, with {_said(first)}", _some(nearest)
        )
    known = store.models()
    if not known:
        return NoMatchError(f"{said}; there is no study yet, `fa-tune run` makes one")
    more = f" and {len(known) - MOST_MODELS_NAMED} more" if len(known) > MOST_MODELS_NAMED else ""
    # of a model that is called alike, one study each
    for model in get_close_matches(question.model[:200], known, NEAREST, cutoff=0.0):
        other = Difference("model", question.model, model)
        found = [Nearest(s, (other, *question.differences(s))) for s in store.studies(model)]
        nearest += _by_distance(found)[:1]
    return NoMatchError(f"{said}; there are studies of {', '.join(known[:MOST_MODELS_NAMED])}{more}", tuple(nearest))


def _said(near: Nearest) -> str:
    return ", ".join(f"{d.field.replace('_', ' ')} {d.stored} and not {d.asked}" for d in near.differences)


def _some(nearest: list[Nearest]) -> tuple[Nearest, ...]:
    """The first few that do not differ in the same."""
    distinct: dict[tuple[Difference, ...], Nearest] = {}
    for near in nearest:
        distinct.setdefault(near.differences, near)
    return tuple(distinct.values())[:NEAREST]


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
