"""What each step and layer of a study costs in quality, and how far shadow probes foretold it, as JSON documents."""

from __future__ import annotations

from typing import Any

from fa_tuner.domain.measurement import Measurement
from fa_tuner.domain.study import Evaluation, Study, study_id
from fa_tuner.evaluate.evaluator import shadow_answers


def sensitivity_document(study: Study, evaluations: list[Evaluation]) -> dict[str, Any]:
    """By prompt and dtype the share of the squared error by step and by layer, as the error model has it that is fitted
    to all that was measured.

    Raises:
        NotFoundError: too few policies were measured.
    """
    from fa_tuner.search.sensitivity import sensitivities
    from fa_tuner.search.shadows import weights_by_prompt
    from fa_tuner.search.space import Space

    spec = study.spec
    space = Space(spec.grid, spec.dtypes)
    native, quantized = _measured(evaluations)
    found = sensitivities(
        space,
        [m.policy for m in quantized],
        [[case.metrics["mse"] for case in m.cases] for m in quantized],
        None if native is None else weights_by_prompt(shadow_answers(native), space),
    )
    return {
        "study": spec.name,
        "id": study_id(spec.name),
        "measured": len(quantized),
        "steps": list(range(spec.grid.steps)),
        "layers": list(spec.grid.layers),
        "prompts": [
            {
                "prompt": case.prompt,
                "seed": case.seed,
                "dtypes": [
                    {"dtype": each.dtype, "steps": list(each.steps), "layers": list(each.layers)} for each in of_prompt
                ],
            }
            for case, of_prompt in zip(spec.workload.cases, found, strict=True)
        ],
    }


def shadow_agreement(study: Study, evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """By prompt how well the shadow probes beside the baseline foretell what was measured, in dB and rank correlation;
    empty where there were none, or too little was measured."""
    from fa_tuner.search.shadows import agreement
    from fa_tuner.search.space import Space

    native, quantized = _measured(evaluations)
    if native is None or not native.detail.get("shadows"):
        return []
    space = Space(study.spec.grid, study.spec.dtypes)
    policies, found = [m.policy for m in quantized], []
    for index, answers in enumerate(shadow_answers(native)):
        case = native.cases[index].case
        made = agreement(answers, space, policies, [m.cases[index].metrics["mse"] for m in quantized])
        if made is not None:
            found.append({"prompt": case.prompt, "seed": case.seed, **made._asdict()})
    return found


def _measured(evaluations: list[Evaluation]) -> tuple[Measurement | None, list[Measurement]]:
    """The native policy's measurement, and those of all others."""
    measured = [e.measurement for e in evaluations if e.measurement is not None]
    return next((m for m in measured if m.policy.is_native), None), [m for m in measured if not m.policy.is_native]
