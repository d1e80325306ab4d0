"""Results as tables on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fa_tuner.domain.measurement import IDENTICAL_DB
from fa_tuner.planning import HELD_OUT, POLICIES, TIMED_AGAIN
from fa_tuner.recommend.choice import Candidate, candidates, ranked
from fa_tuner.report.documents import fits_of, front_of, policy_document, result_document, untimed_of
from fa_tuner.report.sensitivity import shadow_agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fa_tuner.domain.study import Evaluation, Recommendation, Study
    from fa_tuner.planning import Plan, TuneRequest

__all__ = ["plan_document", "print_json", "render_plan", "render_result", "result_document"]


def console() -> Console:
    """Stdout; endless lines where it is not a terminal, so that nothing piped is cut or wrapped."""
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=10_000)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))  # noqa: T201


def decibels(value: float) -> str:
    """A PSNR; two identical videos have none."""
    return "identical" if value >= IDENTICAL_DB else f"{value:.2f} dB"


def render_result(study: Study, evaluations: list[Evaluation]) -> None:
    """The front of a study, the user's own policies, and the recommended one."""
    out = console()
    front = front_of(study, evaluations)
    order = ranked(candidates(evaluations), study.spec.requirement)
    chosen = order[0] if order else None
    out.print(_heading(study, evaluations))
    out.print(_table(study, "Pareto front", front, chosen))
    if untimed := untimed_of(study, evaluations):
        out.print(f"{untimed} more may belong on it by their fitted latency; the same command times the best of them")
    own = [c for c in candidates(evaluations) if c.evaluation.origin == "try"]
    if own:
        out.print(_table(study, "your own policies (--try)", own, chosen))
    if chosen is not None:
        policy = chosen.policy
        out.print(
            f'recommended: {policy.dtype}, skip_steps "{policy.skip_steps}", skip_layers "{policy.skip_layers}": '
            f"gain {chosen.measurement.latency.gain:.1%} ({_source(study)}), "
            f"{chosen.measurement.psnr_db(study.spec.requirement.aggregate):.2f} dB"
            f"{_holdout(chosen, study)}"
        )
        out.print(f"export it: fa-tune export {study.spec.name} -o deploy.yaml")


def _heading(study: Study, evaluations: list[Evaluation]) -> str:
    spec, work = study.spec, study.spec.workload
    failed = sum(e.failed for e in evaluations)
    floor = decibels(study.baseline.noise_floor_db) if study.baseline else "not measured"
    measured = sum(not e.policy.is_native for e in evaluations) - failed
    return "\n".join(
        (
            f"study      {spec.name}: {study.state}" + (f" ({study.reason})" if study.reason else ""),
            f"model      {work.model}",
            f"workload   {work.task}, {work.width}x{work.height}, {work.frames} frames, {work.steps} steps, guidance "
            f"{work.guidance:g}; {len(work.cases)} cases searched, {len(work.holdout_cases)} held out",
            f"engine     {spec.environment['engine']} on {spec.environment['device']}, "
            f"operator {spec.environment['operator']}",
            f"latency    {_source(study)}; relative to native",
            *_fit(study, evaluations),
            *_shadows(study, evaluations),
            f"asked for  {spec.requirement}; noise floor: {floor}",
            f"measured   {measured} quantized policies"
            + (f", {failed} failed" if failed else "")
            + _cost(study, evaluations),
        )
    )


def _fit(study: Study, evaluations: list[Evaluation]) -> Iterator[str]:
    """How latency is fitted, where it is, and how well."""
    for fit in fits_of(study, evaluations):
        predicted = sum(c.fitted and c.policy.dtype == fit.dtype for c in candidates(evaluations))
        if fit.holds and not predicted:  # every policy was timed
            continue
        held = f"holds, {predicted} policies have theirs from it" if fit.holds else f"does not hold: {fit.doubt}"
        yield f"fit        latency{f' of {fit.dtype}' if len(study.spec.dtypes) > 1 else ''} {fit}; {held}"


def _shadows(study: Study, evaluations: list[Evaluation]) -> Iterator[str]:
    """How far the shadow probes were right, by prompt where they differ."""
    agreed = shadow_agreement(study, evaluations)
    if agreed:
        correlations, spreads = ([row[name] for row in agreed] for name in ("rank_correlation", "spread_db"))
        policies = agreed[0]["policies"]
        yield (
            f"shadows    foretell the order of the {policies} policies with rank correlation "
            f"{_range(correlations, '.2f')}, their PSNR within {_range(spreads, '.1f')} dB, by prompt"
        )


def _range(values: list[float], form: str) -> str:
    """One figure where they are alike."""
    ends = [format(end, form) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _cost(study: Study, evaluations: list[Evaluation]) -> str:
    known = [e.measurement for e in evaluations if e.measurement is not None]
    if not known:
        return ""
    steps = study.spec.grid.steps
    baseline = sum(m.generations(steps) for m in known if m.policy.is_native)
    rest = sum(m.generations(steps) for m in known if not m.policy.is_native)
    return f"; cost {baseline + rest:.1f} generations of every prompt, {baseline:.1f} of them the baseline's"


def _source(study: Study) -> str:
    spec = study.spec
    return f"projected from profile {spec.latency_profile}" if spec.latency_profile else spec.latency_source


def _holdout(candidate: Candidate, study: Study) -> str:
    met = candidate.holdout_met(study.spec.requirement)
    return {None: ", not checked on held-out prompts", True: ", held-out prompts pass", False: ""}[met]


def _table(study: Study, title: str, rows: Iterable[Candidate], chosen: Candidate | None) -> Table:
    spec = study.spec
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    several = len(spec.dtypes) > 1
    for name in (*["dtype"] * several, "skip steps", "skip layers", "quantized", f"gain ({spec.latency_source})", "±"):
        table.add_column(name, justify="left" if name.startswith(("skip", "dtype")) else "right", no_wrap=True)
    aggregates = spec.requirement.aggregates
    for name in ("PSNR dB worst", *aggregates[1:], "SSIM worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("held out", "meets", "from"):
        table.add_column(name, no_wrap=True)
    timed = spec.latency_source == "measured"
    if timed:
        table.add_column("s end to end", justify="right", no_wrap=True)
    for candidate in rows:
        measured, policy = candidate.measurement, candidate.policy
        ssim = min(case.metrics["ssim"] for case in measured.cases)
        met, seconds = spec.requirement.met_by(measured.cases), measured.latency.end_to_end_seconds
        table.add_row(
            "*" if candidate is chosen or (chosen and policy == chosen.policy) else "",
            *[policy.dtype] * several,
            f'"{policy.skip_steps}"' if not policy.is_native else "" if several else "native",
            "" if policy.is_native else f'"{policy.skip_layers}"',
            f"{policy.share(spec.grid):.0%}",
            f"{measured.latency.gain:.2%}" + (" fitted" if candidate.fitted else ""),
            f"{measured.latency.spread:.2%}" if measured.latency.repeats or candidate.fitted else "",
            *(decibels(measured.psnr_db(how)).removesuffix(" dB") for how in aggregates),
            f"{ssim:.4f}",
            {None: "", True: "pass", False: "fail"}[candidate.holdout_met(spec.requirement)],
            "" if policy.is_native else "yes" if met else "no",
            candidate.evaluation.origin,
            *([f"{seconds:.3f}" if seconds else ""] if timed else []),
        )
    return table


def render_recommendation(recommendation: Recommendation) -> None:
    out, policy, measured = console(), recommendation.policy, recommendation.measurement
    spec, latency = recommendation.study.spec, recommendation.measurement.latency
    seconds = f", {latency.seconds:.3f} s" if latency.seconds is not None else ""
    out.print(f"model        {spec.workload.model}")
    out.print(f"study        {spec.name} ({recommendation.study.updated:%Y-%m-%d})")
    out.print(f"dtype        {policy.dtype}")
    out.print(f'skip_steps   "{policy.skip_steps}"')
    out.print(f'skip_layers  "{policy.skip_layers}"')
    out.print(f"latency      gain {latency.gain:.2%} over native{seconds}, {_source(recommendation.study)}")
    if latency.end_to_end_seconds is not None:
        out.print(f"end to end   {latency.end_to_end_seconds:.3f} s, all searched cases")
    worst, *others = recommendation.requirement.aggregates
    beside = "".join(f", {measured.psnr_db(how):.2f} dB {how}" for how in others)
    out.print(f"PSNR         {measured.psnr_db(worst):.2f} dB {worst} prompt{beside}")
    out.print(f"asked for    {recommendation.requirement}")
    out.print(f"holds for    {spec.workload.steps} steps, {spec.workload.width}x{spec.workload.height}, "
              f"{spec.workload.frames} frames, guidance {spec.workload.guidance:g}")  # fmt: skip
    for note in recommendation.notes:
        out.print(f"note         {note}")


def render_studies(rows: list[tuple[Study, int]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("study", "state", "policies", "dtype", "asked for", "latency", "model", "updated"):
        table.add_column(name, no_wrap=True)
    for study, count in rows:
        spec = study.spec
        table.add_row(
            spec.name, study.state, f"{count}/{study.target}", spec.dtype,
            ", ".join(map(str, spec.requirement.constraints)), spec.latency_source, spec.workload.model,
            f"{study.updated:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    console().print(table if rows else "no study yet; `fa-tune run --model ...` makes one")


def render_trials(study: Study, evaluations: list[Evaluation]) -> None:
    out = console()
    out.print(_heading(study, evaluations))
    measured = sorted(candidates(evaluations), key=lambda c: c.evaluation.number)
    order = ranked(measured, study.spec.requirement)
    out.print(_table(study, "policies in the order they were measured", measured, order[0] if order else None))
    for evaluation in evaluations:
        if evaluation.failed:
            out.print(f"failed: {evaluation.policy}: {evaluation.reason}")


def plan_document(request: TuneRequest, made: Plan) -> dict[str, Any]:
    document: dict[str, Any] = {
        "study": request.study,
        "model": request.workload.model,
        "engine": request.engine,
        "environment": made.description.environment,
        "latency": "measured" if _times(request, made) else "projected",
        "policies": made.policies,
        "policies_possible": made.space,
        "generations": {**made.generations_by_phase, "total": sum(made.generations_by_phase.values())},
        "generation_equivalents": {**made.equivalents, "total": sum(made.equivalents.values())},
        "seconds_a_generation": made.seconds_a_generation,
        "seconds_at_most": made.seconds,
        "workload": request.workload.document(),
        "tries": [policy_document(p, made.description.grid) for p in made.tries],
    }
    if made.reuse is not None:
        total = document["generation_equivalents"]["total"] - made.policies
        document |= {
            "policies_about": made.reuse.policies,
            "generation_equivalents_about": {
                "policies": made.reuse.equivalents, "total": total + made.reuse.equivalents,
                "total_least": total + made.reuse.least, "total_most": total + made.reuse.most,
            },
            "seconds_about": made.seconds_about,
        }  # fmt: skip
    return document


def _times(request: TuneRequest, made: Plan) -> bool:
    return request.profile is None and made.description.latency == "measured"


def render_plan(request: TuneRequest, made: Plan) -> None:
    out, reuse = console(), made.reuse
    space = f"{made.space:,}" if made.space < 10**9 else f"about 10^{len(str(made.space)) - 1}"
    count = f"up to {made.policies} of {space} policies"
    if reuse and reuse.policies > made.policies:
        count += f" in the time given, about {reuse.policies} where they share steps"
    out.print(f"study {request.study} on {made.description.pipeline}, {made.description.grid}, started anew: {count}")
    for phase, generations in made.generations_by_phase.items():
        more = f"; {len(request.workload.holdout_cases)} more for each that fails" if phase == HELD_OUT else ""
        out.print(f"{generations:6d} generations  {phase}{more if generations else ''}")
    out.print(f"{sum(made.generations_by_phase.values()):6d} generations  in all, where each runs in full")
    _render_equivalents(out, request, made)
    times, again = _about(made.seconds_about, made.seconds, _duration), made.generations_by_phase.get(TIMED_AGAIN, 0)
    out.print(
        f"device time for all prompts: {times}"
        + (f", {_duration(again * made.seconds_a_generation)} of it for finalists" if again else "")
        + f", at {made.seconds_a_generation:.2f} s for one native generation, timed just now"
        + ("; emulated quantized calls take longer" if made.description.operator == "emulated" else "")
    )


def _render_equivalents(out: Console, request: TuneRequest, made: Plan) -> None:
    """Generations of every searched prompt, after reuse and at most."""
    total, reuse = sum(made.equivalents.values()), made.reuse
    parts = [f"{phase} {_tenths(cost)}" for phase, cost in made.equivalents.items() if phase != POLICIES]
    parts.append(f"policies {_about(made.policies - made.saved, made.policies, _tenths)}")
    cost = _about(total - made.saved, total, _tenths)
    out.print(f"{cost} generations of every searched prompt, timing repeats left out: {', '.join(parts)}")
    if reuse is None:
        timed = TIMED_AGAIN in made.generations_by_phase
        out.print(f"  each runs in full: {'what is timed is never resumed' if timed else 'this engine resumes none'}")
        if timed and not request.time_every_policy:
            out.print(f"  where the fit of latency holds, most policies are generated {made.cases} times and not timed")
    elif made.saved:
        least, most = (total - made.policies + end for end in (reuse.least, reuse.most))
        out.print(
            f"  about: policies go on from steps that earlier runs share with them; simulated searches of "
            f"{reuse.rehearsed} policies, on made-up landscapes, say {_tenths(least)} to {_tenths(most)}"
        )


def _about(expected: float, most: float, text: Callable[[float], str]) -> str:
    return f"about {text(expected)}, at most {text(most)}" if expected < most else f"at most {text(most)}"


def _tenths(count: float) -> str:
    return f"{count:,.1f}".removesuffix(".0")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
