"""What is concluded from generations: quality by case, latency with its source, the coverage proof."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Case

IDENTICAL_DB = 100.0  # stands for the infinite PSNR of identical frames
LatencySource = Literal["measured", "fitted", "projected"]
Aggregate = str  # "worst", "mean", or a quantile "p1" to "p50"; see `check_aggregate`
AGGREGATE = "worst|mean|p([1-9]|[1-4][0-9]|50)"

HIGHER_IS_BETTER = ("psnr_db", "worst_frame_psnr_db", "ssim", "cosine_similarity")
LOWER_IS_BETTER = ("mae", "mse", "rmse", "max_abs", "l2", "relative_l2")
METRICS = HIGHER_IS_BETTER + LOWER_IS_BETTER


def psnr_of_mse(mse: float) -> float:
    """PSNR in dB of a mean squared error of uint8 samples; identical frames give `IDENTICAL_DB`.

    Raises:
        ValueError: `mse` is no finite number.
    """
    if not math.isfinite(mse):
        raise ValueError(f"mean squared error is {mse}; it must be a finite number")
    return IDENTICAL_DB if mse <= 0 else min(IDENTICAL_DB, 10 * math.log10(255.0**2 / mse))


@dataclass(frozen=True, slots=True)
class CaseQuality:
    """A candidate's frames against the baseline's, for one case. `metrics` has a finite number for each of
    `METRICS`; `identical` says that not one sample differs (then PSNR is `IDENTICAL_DB`)."""

    case: Case
    metrics: Mapping[str, float]
    identical: bool = False

    def __post_init__(self) -> None:
        metrics = self.metrics
        try:
            if all(map(math.isfinite, map(metrics.__getitem__, METRICS))):
                return
        except (KeyError, TypeError):
            pass
        name = next(n for n in METRICS if (v := metrics.get(n)) is None or not math.isfinite(v))
        raise ValueError(
            f"metric {name} is {metrics.get(name)} for prompt {self.case.prompt[:40]!r}; it must be a finite number"
        )

    @classmethod
    def of_identical(cls, case: Case) -> CaseQuality:
        """The quality of frames that equal the baseline's in every sample."""
        best = {"psnr_db": IDENTICAL_DB, "worst_frame_psnr_db": IDENTICAL_DB, "ssim": 1.0, "cosine_similarity": 1.0}
        return cls(case, {name: best.get(name, 0.0) for name in METRICS}, identical=True)


def check_aggregate(text: str) -> Aggregate:
    """
    Raises:
        UsageError: it is none.
    """
    if re.fullmatch(AGGREGATE, text) is None:
        raise UsageError(
            f"aggregate {text[:40]!r} is unknown; choose worst, mean, or p1 to p50: of p10, "
            "at most 10 percent of the prompts fall short"
        )
    return text


def may_fall_short(how: Aggregate, cases: int) -> int:
    """How many of the cases may be worse than their aggregate: none of the worst one, NN percent of pNN, rounded
    down. So p10 of fewer than ten cases is the worst."""
    return 0 if how == "worst" else int(how[1:]) * cases // 100


def aggregate(cases: Iterable[CaseQuality], metric: str, how: Aggregate) -> float:
    """One number over the cases: the worst, the mean (for PSNR that of the squared error, then dB), or the quantile
    pNN: the best case's value that at most NN percent of the cases fall short of. It is always one case's own value,
    and a bound on it holds where at most NN percent of the cases miss that bound."""
    seen = tuple(cases)
    values = [quality.metrics[metric] for quality in seen]
    if how != "mean":
        return sorted(values, reverse=metric in LOWER_IS_BETTER)[may_fall_short(how, len(values))]
    if metric == "psnr_db":
        return psnr_of_mse(math.fsum(quality.metrics["mse"] for quality in seen) / len(values))
    return math.fsum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Latency:
    """Denoising time of a policy.

    `relative` is that of the native policy under the same conditions taken as 1 (gain = 1 - relative);
    `seconds` is absent where only a ratio is known (a projection onto another workload). `spread` is the
    relative half-width of what repeats showed (0 where nothing was repeated).
    """

    relative: float
    source: LatencySource
    seconds: float | None = None
    spread: float = 0.0
    repeats: int = 0
    end_to_end_seconds: float | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        for name, value in (
            ("relative", self.relative), ("seconds", self.seconds), ("end_to_end_seconds", self.end_to_end_seconds),
        ):  # fmt: skip
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"latency {name} is {value}; it must be a finite number above 0")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"latency spread is {self.spread}; it must be a finite number, 0 or above")

    @property
    def gain(self) -> float:
        return 1.0 - self.relative


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the call counter proved: attention calls seen, by dtype, over all cases of a measurement."""

    quantized_calls: int
    native_calls: int
    expected_quantized_calls: int
    proven: bool


@dataclass(frozen=True)
class Constraint:
    """A bound on an aggregated metric."""

    metric: str
    op: Literal[">=", "<="]
    value: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read "psnr_db>=30" or "mae<=3".

        Raises:
            UsageError: an unknown metric, the wrong direction for it, or a value that is no finite number.
        """
        match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(>=|<=)\s*([-+.0-9eE]+)\s*", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"constraint {text[:60]!r} is not of the form metric>=value, such as psnr_db>=30 or mae<=3"
            )
        metric, op, number = match.groups()
        if metric not in METRICS:
            raise UsageError(f"constraint on unknown metric {metric[:60]!r}; choose one of {', '.join(METRICS)}")
        wanted = ">=" if metric in HIGHER_IS_BETTER else "<="
        if op != wanted:
            raise UsageError(f"constraint {text.strip()[:60]!r} points the wrong way; {metric} takes {wanted}")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"constraint {text.strip()[:60]!r}: {number[:60]!r} is not a number") from None
        if not math.isfinite(value):
            raise UsageError(f"constraint {text.strip()[:60]!r}: the bound must be finite")
        return cls(metric, ">=" if wanted == ">=" else "<=", value)

    def violation(self, value: float) -> float:
        """How far `value` misses the bound, in the metric's own unit; 0 or below where it holds."""
        return self.value - value if self.op == ">=" else value - self.value

    def __str__(self) -> str:
        short = f"{self.value:g}"
        return f"{self.metric}{self.op}{short if float(short) == self.value else repr(self.value)}"


# vllm_omni.quantization.tools.compare_diffusion_trajectory_similarity, metric_guidance(); a metric without a
# value in a preset is not constrained.
PRESETS: dict[str, tuple[Constraint, ...]] = {
    "recommended": tuple(
        map(Constraint.parse, ("psnr_db>=20", "mae<=12", "cosine_similarity>=0.98", "relative_l2<=0.20"))
    ),
    "good": tuple(map(Constraint.parse, ("psnr_db>=25", "mae<=6"))),
    "strict": tuple(map(Constraint.parse, ("psnr_db>=30", "mae<=3", "cosine_similarity>=0.995", "relative_l2<=0.08"))),
}


@dataclass(frozen=True)
class Requirement:
    """All constraints, and how cases are aggregated before they are checked.

    Raises:
        UsageError: an unknown aggregate.
    """

    constraints: tuple[Constraint, ...]
    aggregate: Aggregate = "worst"

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)

    def violations(self, cases: Iterable[CaseQuality]) -> dict[str, float]:
        """By constraint as written; 0 or below where it holds."""
        seen = tuple(cases)
        return {str(c): c.violation(aggregate(seen, c.metric, self.aggregate)) for c in self.constraints}

    def met_by(self, cases: Iterable[CaseQuality]) -> bool:
        seen = tuple(cases)
        return all(c.violation(aggregate(seen, c.metric, self.aggregate)) <= 0 for c in self.constraints)

    def beside(self, other: Requirement) -> Requirement:
        """This one, with the PSNR bound of `other` where it has none of its own: a further bound on something else
        does not lift that."""
        if self.min_psnr is not None:
            return self
        return Requirement(
            (*(c for c in other.constraints if c.metric == "psnr_db"), *self.constraints), self.aggregate
        )

    @property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """Those that say how good a policy is: the worst and the mean, and between them a quantile if that counts."""
        return ("worst", "mean") if self.aggregate in ("worst", "mean") else ("worst", self.aggregate, "mean")

    @property
    def min_psnr(self) -> float | None:
        """The strictest PSNR bound, in dB, if there is one."""
        return max((c.value for c in self.constraints if c.metric == "psnr_db"), default=None)

    def __str__(self) -> str:
        of = "prompt" if self.aggregate in ("worst", "mean") else "of prompts"
        return f"{', '.join(map(str, self.constraints))} ({self.aggregate} {of})"


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that was measured of one policy. `holdout` is empty until the policy was checked on held-out prompts.
    `seconds` is the wall-clock cost of measuring it; `detail` holds what the engine's own clock showed, which is no
    latency of the device where the operator is emulated."""

    policy: SkipPolicy
    latency: Latency
    cases: tuple[CaseQuality, ...]
    coverage: Coverage
    holdout: tuple[CaseQuality, ...] = ()
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def generations(self, steps: int) -> float:
        """What it cost in generation equivalents: one is a generation of every searched case, resumed runs and shadow
        probes count by the transformer steps that they ran, timing repeats and held-out cases not at all. The native
        policy is generated twice, unless it was taken over from another study."""
        if self.detail.get("taken_over"):
            return 0.0
        if self.policy.is_native:
            return 2.0 + len(self.detail.get("shadows", ())) / steps
        return 1.0 - float(self.detail.get("steps_reused", 0)) / (steps * len(self.cases))

    def psnr_db(self, how: Aggregate = "worst") -> float:
        return aggregate(self.cases, "psnr_db", how)
