"""`fa-tune export`: a measured policy as vLLM-Omni configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    AggregateBy,
    Constraints,
    Dtype,
    Json,
    MinPsnr,
    OutFile,
    Quality,
    Storage,
    StudyName,
    asked,
    one_of,
    stored,
)


def export(
    study: StudyName,
    min_psnr: MinPsnr = None,
    quality: Quality = None,
    constraint: Constraints = None,
    aggregate: AggregateBy = None,
    format_: Annotated[
        str, typer.Option("--format", help="deploy (overlay YAML), stage-args (up to 0.26) or flags.")
    ] = "deploy",
    stage_id: Annotated[int, typer.Option("--stage-id", help="The diffusion stage.")] = 0,
    output: OutFile = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="Merge into this YAML, keeping the rest of it.", show_default=False)
    ] = None,
    vllm_omni_version: Annotated[
        str | None, typer.Option("--vllm-omni-version", help="The version that will read it.", show_default=False)
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Have the installed vllm-omni read it, before it is written.")
    ] = False,
    dtype: Dtype = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Write the recommended policy of a study as a stage configuration file."""
    from fa_tuner.documents import read_text, write_atomically
    from fa_tuner.domain.errors import UsageError
    from fa_tuner.domain.upstream import Release
    from fa_tuner.export import Target, exporter, merge_into, target_of
    from fa_tuner.export.validate import validate as read_back
    from fa_tuner.recommend.question import recommend_from
    from fa_tuner.report.documents import recommendation_document

    from .render import print_json

    if into is not None and (output is not None or format_ != "deploy"):
        raise UsageError("--into merges the deploy keys into one file; it takes neither -o nor --format")
    release = None if vllm_omni_version is None else Release.parse(vllm_omni_version)
    writer, reader, found = exporter(format_), Target(format_, release), None
    with stored(storage) as store:
        recommendation = recommend_from(
            store.study(study), store.evaluations(study), asked(min_psnr, quality, constraint, aggregate), one_of(dtype)
        )
    if into is not None:
        text = merge_into(read_text(into, "deploy configuration"), recommendation, stage_id, str(into), release)
        target: Path | None = into
        reader = target_of(text, str(into), release)
    else:
        text, target = writer.export(recommendation, stage_id, release), output
    if validate:
        found = read_back(text, reader, recommendation, stage_id, into.parent if into is not None else None)
    if target is not None:
        write_atomically(target, text)
    if json_:
        print_json({
            **recommendation_document(recommendation), "format": format_, "text": text,
            "file": str(target) if target else "", "validated_by": f"vllm-omni {found.version}" if found else "",
        })  # fmt: skip
        return
    if found is not None:
        policy = recommendation.policy
        sys.stderr.write(
            f"validated by vllm-omni {found.version}: steps {{{policy.skip_steps}}} layers {{{policy.skip_layers}}} "
            "as meant\n"
        )
    if target is None:
        sys.stdout.write(text)
    else:
        sys.stderr.write(f"written: {target}\n")
