"""Synthetic landscapes: a formula with the traits of measured ones, for grids too large to tabulate.

docs/landscapes.md gives the formula; its random numbers come from SHA-256, so that a seed means the same landscape
on every machine and in every release.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fa_tuner.domain.errors import DocumentError, UsageError
from fa_tuner.domain.measurement import IDENTICAL_DB, CaseQuality, psnr_of_mse
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.landscape import Landscape, LatencyModel, Numbers, only, take

MSE_LIMIT = 8000.0  # towards which the squared error saturates: about that of two unrelated pictures
SIGNAL_RMS = 110.0  # of the imagined native frames
PSNR_DB: Mapping[str, float] = {"fp8": 33.0, "mxfp8": 30.0, "mxfp4": 24.0}
ATTENTION_RATIO: Mapping[str, float] = {"fp8": 0.8, "mxfp8": 0.75, "mxfp4": 0.6}


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A landscape by formula.

    `psnr_db` is what quantizing everything gives, by dtype, for a typical prompt and without cliffs. `spread` is
    the standard deviation of the logarithm of the steps' and of the layers' sensitivity, `interactions` that of the
    cells about their rank-one product, `disagreement` that of the prompts about the common sensitivities (and, times
    12 dB, of their level). Each of `cliffs` pairs of steps or layers costs `cliff_db` once both are quantized.

    With `shadow_noise`, shadows are answered: it is the standard deviation of the logarithm of an answer about what the
    cells truly add, and `growth` that of a factor of each step, as an early error may grow or fade in later ones.
    """

    grid: Grid
    cases: tuple[Case, ...]
    samples: int  # of one generation: frames x height x width x 3
    seed: int
    psnr_db: Mapping[str, float]
    spread: float = 1.0
    interactions: float = 0.3
    disagreement: float = 0.5
    cliffs: int = 0
    cliff_db: float = 10.0
    shadow_noise: float | None = None
    growth: float = 0.0
    _weights: dict[Case, Numbers] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, most in (
            ("spread", self.spread, 5), ("interactions", self.interactions, 5), ("disagreement", self.disagreement, 5),
            ("cliffs", self.cliffs, 64), ("cliff_db", self.cliff_db, 60), ("growth", self.growth, 5),
            ("shadow_noise", self.shadow_noise or 0.0, 5),
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise DocumentError(f"synthetic.{name} is {value}; it must lie between 0 and {most}")
        for dtype, level in self.psnr_db.items():
            if dtype not in DTYPES or not 5 <= level <= 95:
                raise DocumentError(
                    f"synthetic.psnr_db.{dtype[:20]} is {level}; dtypes are {', '.join(DTYPES)}, from 5 to 95 dB"
                )

    @property
    def policies(self) -> None:
        """Every policy of the grid has an answer."""
        return None

    def relative_latency(self, policy: SkipPolicy) -> None:
        """Nothing is timed; the latency model answers."""
        return

    def quality(self, policy: SkipPolicy, case: Case) -> CaseQuality | None:
        if case not in self.cases or not (policy.is_native or policy.dtype in self.psnr_db):
            return None
        mse = self.mse(policy, case)
        if mse == 0:
            return CaseQuality.of_identical(case)
        rmse, relative = math.sqrt(mse), math.sqrt(mse) / SIGNAL_RMS
        return CaseQuality(case, {
            "psnr_db": psnr_of_mse(mse),
            "worst_frame_psnr_db": psnr_of_mse(2 * mse),
            "ssim": 1 / (1 + mse / 200),
            "cosine_similarity": 1 / math.sqrt(1 + relative**2),
            "mae": rmse * math.sqrt(2 / math.pi),
            "mse": mse,
            "rmse": rmse,
            "max_abs": min(255.0, 6 * rmse),
            "l2": rmse * math.sqrt(self.samples),
            "relative_l2": relative,
        })  # fmt: skip

    def mse(self, policy: SkipPolicy, case: Case) -> float:
        """Mean squared error of uint8 samples; 0 where nothing is quantized."""
        steps = policy.quantized_steps(self.grid)
        positions = [i for i, layer in enumerate(self.grid.layers) if layer not in policy.skip_layers]
        if policy.is_native or not steps or not positions:
            return 0.0
        cliff_db = self.cliff_db * sum(self._falls(cliff, steps, positions) for cliff in self._cliffs)
        share = self._share(case, steps, positions)
        mse = share * 255**2 * 10 ** ((cliff_db - self._level(policy.dtype, case)) / 10)
        return mse / (1 + mse / MSE_LIMIT)

    def shadow(self, shadow: Shadow, case: Case) -> float | None:
        known = shadow.step in range(self.grid.steps) and shadow.layers and set(shadow.layers) <= set(self.grid.layers)
        if self.shadow_noise is None or not known or case not in self.cases or shadow.dtype not in self.psnr_db:
            return None
        share = self._share(case, (shadow.step,), [self.grid.layers.index(layer) for layer in shadow.layers])
        strayed = self.shadow_noise * self._normal(f"shadow|{shadow.step}|{SkipSelector.of(shadow.layers)}")
        grown = self.growth * self._normal(f"growth|{shadow.step}")
        return share * math.exp(strayed + grown) * 1e-3 * 10 ** (-self._level(shadow.dtype, case) / 10)

    def document(self) -> dict[str, Any]:
        shadows = {} if self.shadow_noise is None else {"shadow_noise": self.shadow_noise, "growth": self.growth}
        return {
            "seed": self.seed, "psnr_db": dict(self.psnr_db), "spread": self.spread, "interactions": self.interactions,
            "disagreement": self.disagreement, "cliffs": self.cliffs, "cliff_db": self.cliff_db,
            **shadows,
        }  # fmt: skip

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], workload: Workload, grid: Grid, dtypes: Sequence[str]
    ) -> Synthetic:
        """
        Raises:
            DocumentError: with what is wrong and where.
        """
        reals = ("spread", "interactions", "disagreement", "cliff_db")
        optional = ("shadow_noise", "growth")
        only(document, "synthetic", (*reals, "seed", "cliffs", "psnr_db", *optional))
        levels = take(document, "synthetic", "psnr_db", dict)
        return cls(
            grid,
            workload.cases + workload.holdout_cases,
            _samples(workload),
            take(document, "synthetic", "seed", int),
            {name: float(take(levels, "synthetic.psnr_db", name, float, int)) for name in (*dtypes, *levels)},
            cliffs=take(document, "synthetic", "cliffs", int),
            **{
                name: float(take(document, "synthetic", name, float, int))
                for name in (*reals, *(name for name in optional if name in document))
            },
        )

    @cached_property
    def _cliffs(self) -> tuple[tuple[str, int, int], ...]:
        """Pairs of steps ("steps", i, j) and of positions of layers ("layers", i, j), alternately."""
        found = []
        for k in range(self.cliffs):
            what, count = ("layers", len(self.grid.layers)) if k % 2 else ("steps", self.grid.steps)
            if count > 1:
                u, v = self._uniforms(f"cliff|{k}")
                first = int(u * count) % count
                found.append((what, first, (first + 1 + int(v * (count - 1)) % (count - 1)) % count))
        return tuple(found)

    @staticmethod
    def _falls(cliff: tuple[str, int, int], steps: Sequence[int], positions: Sequence[int]) -> bool:
        what, first, second = cliff
        quantized = steps if what == "steps" else positions
        return first in quantized and second in quantized

    def _share(self, case: Case, steps: Sequence[int], positions: Sequence[int]) -> float:
        """What the cells of these steps and positions of layers add to the squared error, of what all of them do."""
        weights = self._weights_of(case)
        return float(weights[np.ix_(steps, positions)].sum() / weights.sum())

    def _level(self, dtype: str, case: Case) -> float:
        """PSNR in dB with everything quantized, without cliffs."""
        level = self.psnr_db[dtype] + 12 * self.disagreement * self._normal(f"level|{_label(case)}")
        return min(95.0, max(5.0, level))

    def _weights_of(self, case: Case) -> Numbers:
        """[step, layer position]: how much each cell adds to the squared error, in proportion."""
        if case not in self._weights:
            label = _label(case)
            steps, layers = range(self.grid.steps), self.grid.layers
            rows = np.array([self._sensitivity(f"step|{t}", label) for t in steps])
            columns = np.array([self._sensitivity(f"layer|{n}", label) for n in layers])
            cells = np.array([[self.interactions * self._normal(f"cell|{t}|{n}") for n in layers] for t in steps])
            self._weights[case] = np.exp(rows[:, None] + columns[None, :] + cells)
        return self._weights[case]

    def _sensitivity(self, index: str, label: str) -> float:
        """Logarithm of a step's or a layer's: one part common to all prompts, one the case's own."""
        return self.spread * self._normal(index) + self.disagreement * self._normal(f"{index}|{label}")

    def _normal(self, label: str) -> float:
        """A standard normal number (Box and Muller)."""
        u, v = self._uniforms(label)
        return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)

    def _uniforms(self, label: str) -> tuple[float, float]:
        """Two numbers in (0, 1] from the first 16 bytes of SHA-256("SEED|LABEL")."""
        digest = hashlib.sha256(f"{self.seed}|{label}".encode("utf-8", "surrogatepass")).digest()
        return (int.from_bytes(digest[:8]) + 0.5) / 2**64, (int.from_bytes(digest[8:16]) + 0.5) / 2**64


def _label(case: Case) -> str:
    return f"{case.seed}|{case.prompt}"


def _samples(workload: Workload) -> int:
    return workload.frames * workload.height * workload.width * 3


def synthetic_landscape(
    steps: int, layers: int, prompts: int = 3, seed: int = 0, *, holdout: int = 0, interactions: float = 0.3,
    disagreement: float = 0.5, spread: float = 1.0, cliffs: int = 0, cliff_db: float = 10.0,
    psnr_db: Mapping[str, float] = PSNR_DB, attention_share: float = 0.5,
    attention_ratio: Mapping[str, float] = ATTENTION_RATIO, native_seconds: float = 60.0,
    shadow_noise: float | None = None, growth: float = 0.0,
) -> Landscape:  # fmt: skip
    """A landscape of `steps` x `layers` cells for `prompts` searched and `holdout` held-out prompts; see `Synthetic`.

    Raises:
        UsageError: a parameter out of its bounds.
    """
    if not 1 <= layers <= 1000:
        raise UsageError(f"layers is {layers}; it must lie between 1 and 1000")
    workload = Workload(
        model=f"synthetic-{seed}", height=480, width=832, frames=81, steps=steps,
        prompts=tuple(f"synthetic prompt {i}" for i in range(prompts)),
        holdout=tuple(f"synthetic held-out prompt {i}" for i in range(holdout)),
    )  # fmt: skip
    grid = Grid(steps, tuple(range(layers)))
    record = Synthetic(
        grid, workload.cases + workload.holdout_cases, _samples(workload), seed, dict(psnr_db),
        spread=spread, interactions=interactions, disagreement=disagreement, cliffs=cliffs, cliff_db=cliff_db,
        shadow_noise=shadow_noise, growth=growth,
    )  # fmt: skip
    environment = {
        "engine": "synthetic", "device": "none", "operator": "formula", "pipeline": "synthetic",
        "steps": steps, "layers": list(grid.layers), "calls_per_cell": 2, "versions": {},
    }  # fmt: skip
    ratios = {dtype: attention_ratio[dtype] for dtype in psnr_db}
    return Landscape(
        workload=workload, environment=environment, dtypes=tuple(psnr_db), made_by="fa_tuner.engines.synthetic",
        noise_floor_db=IDENTICAL_DB, record=record,
        latency=LatencyModel(native_seconds, 1.1 * native_seconds, attention_share, ratios),
    )  # fmt: skip
