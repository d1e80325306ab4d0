"""The engine contract: describe, generate under a policy, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fa_tuner.domain.measurement import CaseQuality
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload, fingerprint_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]  # [frames, height, width, 3], RGB

CellCall = tuple[int, int, str]  # step index, layer index, dtype ("native" or a quantized one)
UNPUBLISHED = -1  # stands in a CellCall for an index that the pipeline did not publish
Prefix = Literal["none", "keep", "reuse"]


@dataclass(frozen=True, order=True)
class Shadow:
    """A question beside a generation: one more transformer forward at `step`, on the same inputs, with `layers`
    (ascending) quantized to `dtype` and all others native."""

    step: int
    layers: tuple[int, ...]
    dtype: str

    def fits(self, grid: Grid, dtypes: Sequence[str]) -> bool:
        """Whether it asks for a step and layers of the grid, and for one of these dtypes."""
        cells_exist = self.step in range(grid.steps) and set(self.layers) <= set(grid.layers)
        return cells_exist and bool(self.layers) and self.dtype in dtypes

    def policy(self, grid: Grid) -> SkipPolicy:
        """Under which the transformer runs for it, whatever the step."""
        native = SkipSelector.of(layer for layer in grid.layers if layer not in self.layers)
        return SkipPolicy(self.dtype, skip_layers=native)


@dataclass(frozen=True)
class Description:
    """What an engine offers for one workload.

    `calls_per_cell` is the number of self-attention calls that one generation makes in each (step, layer).
    `latency` says what kind of time its generations can give: `measured` only where quantized kernels really
    run. `operator` says which arithmetic the quantized calls use. `settings` are what was set of the engine beyond
    the workload; `resumes` says whether it can go on from a kept prefix, `shadows` whether it answers those.
    `remarks` are for the user's eyes.
    """

    engine: str
    grid: Grid
    calls_per_cell: int
    dtypes: tuple[str, ...]
    latency: Literal["measured", "projected"]
    operator: Literal["real", "emulated", "replayed"]
    device: str
    pipeline: str
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    resumes: bool = False
    shadows: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, Any]:
        """What must not change within a study, as plain JSON values."""
        return {
            "engine": self.engine, "device": self.device, "operator": self.operator, "pipeline": self.pipeline,
            "steps": self.grid.steps, "layers": list(self.grid.layers), "calls_per_cell": self.calls_per_cell,
            "versions": dict(self.versions), **({"settings": dict(self.settings)} if self.settings else {}),
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.environment)


@dataclass(frozen=True)
class Generation:
    """What came out of one run.

    `frames` is uint8 RGB [frames, height, width, 3]; an engine that answers from a record has none and gives
    `recorded` quality against its baseline instead. `calls` counts self-attention calls by (step, layer,
    dtype), on the first rank, and `other_ranks` on the others; `cross_attention_quantized` must stay 0. Where the run
    went on from a kept prefix, `reused_steps` steps were not run, and `reused_calls` are those recorded for them.
    Times are wall-clock seconds, synchronized, without what shadows took. `doubts` are what the engine knows that may
    keep calls from being quantized, for the message if they were not.

    `shadows` answers those that were asked for: the mean over the latent's elements of the squared difference that the
    shadow makes to the guided velocity, times the squared difference of the noise level (sigma) after and before the
    step. That estimates what the quantized cells add to the latent's final squared error, as far as later steps
    neither enlarge nor shrink it.
    """

    frames: Frames | None
    calls: Counter[CellCall]
    denoise_seconds: float
    end_to_end_seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    cross_attention_quantized: int = 0
    peak_memory_mb: float | None = None
    recorded: CaseQuality | None = None
    other_ranks: tuple[Counter[CellCall], ...] = ()
    reused_steps: int = 0
    reused_calls: Counter[CellCall] = field(default_factory=Counter)
    step_seconds: tuple[float, ...] = ()
    doubts: tuple[str, ...] = ()
    shadows: Mapping[Shadow, float] = field(default_factory=dict)


class Engine(ABC):
    """A loaded model that generates under any policy. One instance serves a whole study; not thread-safe."""

    @classmethod
    @abstractmethod
    def unavailable_because(cls) -> str | None:
        """Why this engine cannot run on this machine, with what to install; None where it can. Loads nothing heavy."""

    @classmethod
    @abstractmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> Engine:
        """Load the model once.

        Raises:
            NotFoundError: there is no such model or file.
            UnsupportedModelError: the selectors cannot work on it, and why.
            UsageError: an option that this engine does not know.
            NotQuantizedError: nothing would run quantized here, and why.
            EngineError: it cannot be loaded here.
        """

    @abstractmethod
    def describe(self) -> Description: ...

    @abstractmethod
    def generate(
        self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Sequence[Shadow] = ()
    ) -> Generation:
        """Run the workload once.

        `prefix` matters only to an engine that resumes: "keep" runs in full and keeps the state after each step,
        "reuse" goes on from the longest kept prefix that this policy shares, and keeps the rest; "none" does neither,
        as a run must that is timed. The last step is always run.

        `shadows` are run beside it and change nothing of it, nor are their calls counted. Those that cannot be given
        are left out of the answer: of steps or layers that are not of the grid, of steps that a prefix covers, and
        all of them where `Description.shadows` is False.

        Raises:
            EngineError: the run failed; the engine can still be used.
            NotQuantizedError: the engine itself says that it cannot quantize.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what was loaded. Safe to call twice."""
