"""Before anything is generated: the request, the first policies, what a run would cost, what keeps it from resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.measurement import Requirement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Origin, StudySpec, check_name, differing
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.registry import open_engine
from fa_tuner.evaluate.profile import DEFAULT_PROFILE, DeviceProfile, load_profile
from fa_tuner.evaluate.timing import finalist_repeats

if TYPE_CHECKING:
    from fa_tuner.engines.base import Description, Engine, Shadow
    from fa_tuner.search.space import Space

POLICIES_AN_INDEX = 2  # what that many find is in docs/benchmarks.md
MOST_TIMED_AGAIN = 12  # of one process, where latency is measured: finalists, and as many for the front
SHADOWS = "shadow probes"
POLICIES = "policies, at most"
TIMED_AGAIN = "finalists timed again, at most"
HELD_OUT = "held-out prompts, baseline and one finalist"
MOST_POLICIES = 100_000  # what a run with a budget may measure at most; its budget ends it long before


@dataclass(frozen=True)
class TuneRequest:
    """What to tune and how. `trials` (policies to measure, the native one not counted) and `budget_seconds` end the
    search; without either, `POLICIES_AN_INDEX` for each step and layer do. `tries` are the user's own policies,
    "STEPS/LAYERS". With `time_every_policy` no latency is fitted in place of being measured."""

    study: str
    workload: Workload
    engine: str
    requirement: Requirement
    dtypes: tuple[str, ...] = ("fp8",)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "rectangle"
    sampler_seed: int = 0
    trials: int | None = None
    budget_seconds: float | None = None
    tries: tuple[str, ...] = ()
    profile: str | None = None
    repeats: int = 3
    time_every_policy: bool = False

    def __post_init__(self) -> None:
        check_name(self.study)  # before an engine is opened for it


@dataclass(frozen=True)
class Reuse:
    """What prefix reuse is expected to leave of the policies' generations, from searches `rehearsed` on made-up
    landscapes: `policies` of them in `equivalents` generation equivalents, between `least` and `most` by landscape.
    Under a budget it is more policies in place of fewer generations."""

    policies: int
    equivalents: float
    least: float
    most: float
    rehearsed: int


@dataclass(frozen=True)
class Plan:
    """What a run would do that starts anew (`--dry-run`): from the description, one native generation, and a rehearsed
    search. `equivalents` are generation equivalents by phase, at most; `reuse` says what to expect of the policies'
    instead, None where nothing is resumed. `denoise_seconds` are those of `seconds_a_generation` that reuse can save.
    """

    description: Description
    policies: int
    space: int
    generations_by_phase: Mapping[str, int]
    equivalents: Mapping[str, float]
    tries: tuple[SkipPolicy, ...]
    seconds_a_generation: float
    denoise_seconds: float
    cases: int
    reuse: Reuse | None

    @property
    def seconds(self) -> float:
        """At most, for all prompts; a shadow probe takes its share of a generation."""
        shadows = self.equivalents.get(SHADOWS, 0.0) * self.cases
        return (sum(self.generations_by_phase.values()) + shadows) * self.seconds_a_generation

    @property
    def saved(self) -> float:
        """Generation equivalents that are expected to be saved by reuse."""
        return self.policies - self.reuse.equivalents if self.reuse else 0.0

    @property
    def seconds_about(self) -> float:
        return self.seconds - self.saved * self.cases * self.denoise_seconds


def plan(request: TuneRequest) -> Plan:
    """Open the engine, check everything that can be checked, and time one native generation; store nothing.

    Quantized calls are emulated on other devices than an NPU and take longer there than the native ones timed.
    """
    from fa_tuner.search import shadows

    with opened(request) as engine:
        description = engine.describe()
        refuse_unfit(request, description)
        profile = profile_for(request, description)
        first_policies = list(queue(request, description.grid))
        timed = engine.generate(SkipPolicy(), request.workload.cases[0])
    cases, holdout = len(request.workload.cases), len(request.workload.holdout_cases)
    measured = profile is None
    per_policy = cases * (2 * request.repeats if measured else 1)
    target = policies = target_of(request, description.grid)
    if request.budget_seconds is not None:
        policies = min(target, int(request.budget_seconds / (per_policy * timed.end_to_end_seconds)) + 1)
    first = min(len(first_policies), policies)
    asked = shadows_beside_baseline(request, description)
    of_each = min(MOST_TIMED_AGAIN, policies)
    again = 2 * cases * of_each * (finalist_repeats(request.repeats) + request.repeats)
    return Plan(
        description,
        policies,
        space_of(request, description.grid).count - 1,
        {
            "baseline, twice": 2 * cases * (request.repeats if measured else 1) + measured,
            "anchors, own and preset policies": first * per_policy,
            f"sampler {request.sampler}": (policies - first) * per_policy,
            **({TIMED_AGAIN: again} if measured else {}),
            HELD_OUT: 2 * holdout,
        },
        {
            "baseline": 2.0,
            **({SHADOWS: shadows.cost(asked, description.grid)} if asked else {}),
            POLICIES: float(policies),
        },
        tuple(policy for policy, origin in first_policies if origin == "try"),
        timed.end_to_end_seconds,
        timed.denoise_seconds,
        cases,
        _reuse(request, description.grid, policies, target, bool(asked))
        if description.resumes and not measured
        else None,
    )


def _reuse(request: TuneRequest, grid: Grid, policies: int, target: int, shadows: bool) -> Reuse:
    """`policies` could be measured without any reuse, `target` of them are wanted."""
    from fa_tuner.search.rehearsal import rehearse

    queued = [policy for policy, _ in queue(request, grid)]
    made = rehearse(
        space_of(request, grid), len(request.workload.cases), request.requirement, queued, target,
        sampler=request.sampler, seed=request.sampler_seed, shadows=shadows,
    )  # fmt: skip
    count = made.affordable(policies, target)
    if count < target:  # then the budget is what ends it
        return Reuse(count, float(policies), float(policies), float(policies), made.policies)
    each = made.each(count)
    return Reuse(count, made.equivalents(count), min(each), max(each), made.policies)


def refuse_unfit(request: TuneRequest, description: Description) -> None:
    """
    Raises:
        UsageError: a dtype that the engine does not have, or a sampler that cannot search this grid.
    """
    from fa_tuner.search.samplers import check_sampler

    if lacking := [dtype for dtype in request.dtypes if dtype not in description.dtypes]:
        raise UsageError(
            f"engine {request.engine} cannot run {', '.join(lacking)}; it has {', '.join(description.dtypes)}"
        )
    check_sampler(request.sampler, space_of(request, description.grid))


def shadows_beside_baseline(request: TuneRequest, description: Description) -> tuple[Shadow, ...]:
    """The shadow probes to ask for: only our sampler makes use of them."""
    from fa_tuner.search.shadows import worth_asking

    asks = description.shadows and request.sampler == "rectangle"
    return worth_asking(space_of(request, description.grid)) if asks else ()


@contextmanager
def opened(request: TuneRequest) -> Iterator[Engine]:
    """The engine, closed whatever happens."""
    engine = open_engine(request.engine, request.workload, request.engine_options)
    try:
        yield engine
    finally:
        engine.close()


def space_of(request: TuneRequest, grid: Grid) -> Space:
    from fa_tuner.search.space import Space

    return Space(grid, request.dtypes)


def target_of(request: TuneRequest, grid: Grid) -> int:
    """How many policies the run wants measured, the native one not counted."""
    space = space_of(request, grid)
    otherwise = POLICIES_AN_INDEX * sum(space.size) if request.budget_seconds is None else MOST_POLICIES
    return min(space.count - 1, request.trials or otherwise)


def queue(request: TuneRequest, grid: Grid) -> Iterator[tuple[SkipPolicy, Origin]]:
    """Everything quantized, the user's own policies, presets; each policy once, the native one never. Our sampler
    weighs presets against other policies; Optuna's have to be told of them."""
    from fa_tuner.search.candidates import schedules

    listed: list[tuple[SkipPolicy, Origin]] = [(SkipPolicy(dtype), "anchor") for dtype in request.dtypes]
    for text in request.tries:
        policy = SkipPolicy.parse(text, request.dtypes, grid)
        if policy.is_native:
            raise UsageError(f'--try "{text}" skips every step or every layer of {grid}; that is the native policy')
        listed.append((policy, "try"))
    if request.sampler != "rectangle":
        space, presets = space_of(request, grid), schedules(grid.steps, len(grid.layers))
        rectangles = [pair for dtype in request.dtypes for pair in zip(*space.of(dtype, *presets), strict=True)]
        listed += [(space.policy_of(rectangle), "preset") for rectangle in rectangles]
    seen: set[str] = set()
    for policy, origin in listed:
        if policy.key not in seen:
            seen.add(policy.key)
            yield policy, origin


def profile_for(request: TuneRequest, description: Description) -> DeviceProfile | None:
    """The profile to project from; None where the engine's own times are to be measured."""
    if description.latency == "measured" and request.profile is None:
        return None
    profile = load_profile(request.profile or DEFAULT_PROFILE)
    for dtype in request.dtypes:
        profile.check(dtype)
    profile.costs(description.grid)  # refused where it is of another model
    return profile


def differences(stored: StudySpec, asked: StudySpec) -> list[str]:
    """What keeps a stored study from being continued, each as "name (stored: a, asked: b)"."""
    pairs: Sequence[tuple[str, Any, Any]] = [
        *((key, value, asked.workload.document()[key]) for key, value in stored.workload.document().items()),
        *((f"environment {name}", a, b) for name, a, b in differing(stored.environment, asked.environment)),
        *(
            (name.replace("_", " "), str(getattr(stored, name)), str(getattr(asked, name)))
            for name in ("dtype", "sampler", "sampler_seed", "latency_source")
        ),
    ]
    return [f"{name} (stored: {_short(a)}, asked: {_short(b)})" for name, a, b in pairs if a != b]


def new_terms(stored: StudySpec, asked: StudySpec) -> list[str]:
    """What is asked otherwise of the same policies, written as the `differences`: it takes no new generation."""
    names = ("requirement", "latency_profile")
    pairs = [(name.replace("_", " "), str(getattr(stored, name)), str(getattr(asked, name))) for name in names]
    return [f"{name} (stored: {_short(a)}, asked: {_short(b)})" for name, a, b in pairs if a != b]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
