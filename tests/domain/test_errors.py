from __future__ import annotations

from http import HTTPStatus

import pytest

from fa_tuner.domain import errors
from fa_tuner.domain.errors import FaTuneError, SelectorError, outcome

CLASSES = sorted(
    (value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FaTuneError)),
    key=lambda cls: cls.__name__,
)
EXIT_CODES = {  # docs and scripts rely on these
    "FaTuneError": 1,
    "UsageError": 2,
    "SelectorError": 2,
    "DocumentError": 2,
    "UnsupportedModelError": 2,
    "ThresholdError": 2,
    "NotFoundError": 3,
    "ConflictError": 4,
    "OtherEnvironmentError": 4,
    "LeaseLostError": 4,
    "EngineError": 5,
    "NothingQualifiesError": 6,
    "NotQuantizedError": 7,
    "StoreError": 8,
    "InterruptedByUser": 130,
}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_its_own_outcome(cls: type[FaTuneError]) -> None:
    found = outcome(cls)
    assert found.exit_code == EXIT_CODES[cls.__name__]
    assert HTTPStatus(found.http_status) >= 400
    assert found.problem_type == found.problem_type.lower().replace(" ", "-")


def test_problem_types_are_unique() -> None:
    types = [outcome(cls).problem_type for cls in CLASSES]
    assert len(set(types)) == len(types) == len(EXIT_CODES)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_docstring_is_the_message_when_none_is_given(cls: type[FaTuneError]) -> None:
    assert str(cls()) == " ".join((cls.__doc__ or "").split())
    assert len(str(cls())) > 20
    assert str(cls("what was wrong")) == "what was wrong"


def test_a_subclass_takes_the_nearest_outcome() -> None:
    class Mine(errors.EngineError):
        """Mine."""

    assert outcome(Mine) == outcome(errors.EngineError)


@pytest.mark.parametrize("cls", [ValueError, KeyboardInterrupt, Exception])
def test_anything_else_is_internal(cls: type[BaseException]) -> None:
    assert outcome(cls) == outcome(FaTuneError)


def test_a_selector_error_knows_its_position() -> None:
    assert SelectorError("x", 3).position == 3
    assert SelectorError("x").position is None
