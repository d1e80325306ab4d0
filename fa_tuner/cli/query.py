"""Commands that read what is stored and generate nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import AggregateBy, Constraints, Dtype, Json, MinPsnr, Quality, Storage, StudyName, asked, one_of, stored


def studies(
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.", show_default=False)] = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """List the stored studies, newest first."""
    from fa_tuner.report.documents import study_document
    from fa_tuner.settings import model_identity

    from .render import print_json, render_studies

    with stored(storage) as store:
        found = store.studies(model_identity(model) if model else None)
        rows = [(study, max(0, store.count(study.spec.name) - (study.baseline is not None))) for study in found]
    if json_:
        print_json([study_document(study, count) for study, count in rows])
    else:
        render_studies(rows)


def show(study: StudyName, storage: Storage = None, json_: Json = False) -> None:
    """Show a study with every policy measured."""
    from fa_tuner.report.documents import evaluation_document, searched_document

    from .render import print_json, render_trials

    with stored(storage) as store:
        found, evaluations = store.study(study), store.evaluations(study)
    if json_:
        document = searched_document(found, evaluations)
        print_json({**document, "evaluations": [evaluation_document(e, found) for e in evaluations]})
    else:
        render_trials(found, evaluations)


def pareto(study: StudyName, storage: Storage = None, json_: Json = False) -> None:
    """Show a study's Pareto front, fastest first."""
    from .render import print_json, render_result, result_document

    with stored(storage) as store:
        found, evaluations = store.study(study), store.evaluations(study)
    if json_:
        print_json(result_document(found, evaluations))
    else:
        render_result(found, evaluations)


def recommend(
    model: Annotated[str, typer.Option("--model", help="Folder or hub id, as given to run.", show_default=False)],
    min_psnr: MinPsnr = None,
    quality: Quality = None,
    constraint: Constraints = None,
    aggregate: AggregateBy = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Pinned revision.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option("--task", help="t2v or i2v.", show_default=False)] = None,
    dtype: Dtype = None,
    steps: Annotated[int | None, typer.Option("--steps", show_default=False)] = None,
    height: Annotated[int | None, typer.Option("--height", show_default=False)] = None,
    width: Annotated[int | None, typer.Option("--width", show_default=False)] = None,
    frames: Annotated[int | None, typer.Option("--frames", show_default=False)] = None,
    guided: Annotated[
        bool | None, typer.Option("--guided/--no-guided", help="With guidance or without.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Generation (A5) or name, or a profile's.", show_default=False)
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", show_default=False)] = None,
    engine_version: Annotated[
        str | None, typer.Option("--engine-version", help="As in 0.30.", show_default=False)
    ] = None,
    latency_source: Annotated[
        str | None, typer.Option("--latency-source", help="measured or projected.", show_default=False)
    ] = None,
    allow_nearest: Annotated[
        bool, typer.Option("--allow-nearest", help="Where nothing matches, answer with the nearest.")
    ] = False,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Answer from what is stored: which selectors for this model?"""
    from fa_tuner.recommend.matching import Question
    from fa_tuner.recommend.question import recommend as answer
    from fa_tuner.report.documents import recommendation_document
    from fa_tuner.settings import model_identity

    from .render import print_json, render_recommendation

    question = Question(
        model_identity(model), asked(min_psnr, quality, constraint, aggregate), one_of(dtype), steps, height, width,
        frames, revision, task, guided, device, engine, engine_version, latency_source,
    )  # fmt: skip
    with stored(storage) as store:
        answered = answer(store, question, allow_nearest)
    if json_:
        print_json(recommendation_document(answered))
    else:
        render_recommendation(answered)
