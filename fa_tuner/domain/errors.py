"""One tree of errors; a class's docstring is its message when none is given.

`outcome()` maps each class to its exit code, HTTP status and problem type, for the command line and the
service alike.
"""

from __future__ import annotations

from typing import NamedTuple


class FaTuneError(Exception):
    """fa-tune met an internal error; please report it with the command that led to it."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((self.__doc__ or "").split()))


class UsageError(FaTuneError):
    """The request cannot be understood; see `fa-tune COMMAND --help`."""


class SelectorError(UsageError):
    """A skip selector is a comma-separated list of indices and ranges, such as "0,1,4-6"."""

    def __init__(self, message: str | None = None, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class DocumentError(UsageError):
    """A file could not be read as the document it should be."""


class UnsupportedModelError(UsageError):
    """Skip selectors cannot work on this model: vLLM-Omni publishes no step or layer index for its pipeline."""


class ThresholdError(UsageError):
    """A quality threshold above the noise floor cannot be decided; lower it."""


class NotFoundError(FaTuneError):
    """There is nothing of that name; `fa-tune studies` lists what is stored."""


class ConflictError(FaTuneError):
    """The stored study and the request differ; use another --study name, or the stored workload."""


class OtherEnvironmentError(ConflictError):
    """The stored study was measured in another environment; a front never mixes devices."""


class LeaseLostError(FaTuneError):
    """This worker was silent for so long that its job was given to another; nothing more of it is stored."""


class EngineError(FaTuneError):
    """The engine is not available or failed; `fa-tune doctor` says what this machine can run."""


class NothingQualifiesError(FaTuneError):
    """No measured policy with a quantized call and a gain beyond noise meets the constraints."""


class NotQuantizedError(FaTuneError):
    """Quantization was asked for and did not take effect."""


class StoreError(FaTuneError):
    """The store could not be read or written."""


class InterruptedByUser(FaTuneError):
    """Interrupted; the same command goes on from here."""


class Outcome(NamedTuple):
    """What the outside sees of an error class."""

    exit_code: int
    http_status: int
    problem_type: str


_OUTCOMES: dict[type[FaTuneError], Outcome] = {
    FaTuneError: Outcome(1, 500, "internal"),
    UsageError: Outcome(2, 422, "invalid-request"),
    SelectorError: Outcome(2, 422, "invalid-selector"),
    DocumentError: Outcome(2, 422, "invalid-document"),
    UnsupportedModelError: Outcome(2, 422, "unsupported-model"),
    ThresholdError: Outcome(2, 422, "threshold-above-noise-floor"),
    NotFoundError: Outcome(3, 404, "not-found"),
    ConflictError: Outcome(4, 409, "conflict"),
    OtherEnvironmentError: Outcome(4, 409, "other-environment"),
    LeaseLostError: Outcome(4, 409, "lease-lost"),
    EngineError: Outcome(5, 503, "engine-unavailable"),
    NothingQualifiesError: Outcome(6, 404, "nothing-qualifies"),
    NotQuantizedError: Outcome(7, 500, "not-quantized"),
    StoreError: Outcome(8, 503, "store-unavailable"),
    InterruptedByUser: Outcome(130, 503, "interrupted"),
}


def outcome(error: type[BaseException]) -> Outcome:
    """The outcome of the nearest class of the tree; anything outside it is an internal error."""
    for base in error.__mro__:
        if base in _OUTCOMES:
            return _OUTCOMES[base]
    return _OUTCOMES[FaTuneError]
