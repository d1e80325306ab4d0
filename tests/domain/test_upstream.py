"""What is on record of vLLM-Omni's versions."""

from __future__ import annotations

import pytest

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import DTYPES
from fa_tuner.domain.upstream import (
    DEPLOY_READ_SINCE,
    FIRST_WITH_SELECTORS,
    NEWEST_KNOWN,
    PIPELINE_SINCE,
    PIPELINE_TO_NAME,
    PUBLISHED_SINCE,
    Release,
    model_class,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.26", "0.26"), ("0.30.0", "0.30"), ("v0.30.0rc1", "0.30"), (" 0.28.1 ", "0.28"), ("1.0", "1.0"),
        ("0.31.0rc2.dev13+gabc", "0.31"),
    ],
)  # fmt: skip
def test_versions_are_read(text: str, shown: str) -> None:
    assert str(Release.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "0", "0.x", "latest", "0.26-rc", "0.26,0.28", "\u0660.\u0662", "0.1234", "0.26\x1b", "-1.0"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write it as 0\.30"):
        Release.parse(text)


def test_a_message_shows_no_control_character_and_not_all_of_a_long_text() -> None:
    with pytest.raises(UsageError) as caught:
        Release.parse("\x1b[31m" + "9" * 5000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "formats", "dtypes", "silent"),
    [
        ("0.20", (), (), True),
        ("0.22", ("deploy", "stage-args", "flags"), ("fp8",), True),
        ("0.26", ("deploy", "stage-args", "flags"), ("fp8",), True),
        ("0.28", ("deploy", "flags"), ("fp8",), True),
        ("0.30", ("deploy", "flags"), DTYPES, False),
        ("1.0", ("deploy", "flags"), DTYPES, False),
    ],
)
def test_each_version_takes_what_it_takes(
    text: str, formats: tuple[str, ...], dtypes: tuple[str, ...], silent: bool
) -> None:
    release = Release.parse(text)
    assert release.formats == formats
    assert release.dtypes == dtypes
    assert release.falls_back_silently is silent
    assert release.drops_unknown_keys is silent
    assert release.has_selectors is bool(formats)
    assert release.is_known is (FIRST_WITH_SELECTORS <= (release.major, release.minor) <= NEWEST_KNOWN)


@pytest.mark.parametrize(
    ("pipeline", "first"),
    [
        ("WanPipeline", "0.26"), ("WanImageToVideoPipeline", "0.26"), ("WanDMDPipeline", "0.28"),
        ("HunyuanImage3ForCausalMM", "0.22"), ("Unknown", "0.22"),
    ],
)  # fmt: skip
def test_deploy_files_are_read_from_some_version_on(pipeline: str, first: str) -> None:
    for text in ("0.20", "0.22", "0.24", "0.26", "0.28", "0.30", "0.32"):
        assert Release.parse(text).reads_deploy_of(pipeline) is (Release.parse(text) >= Release.parse(first))


@pytest.mark.parametrize("pipeline", ["WanI2VDMD2Pipeline", "WanVACEPipeline", "MiniMaxH3Pipeline"])
def test_and_for_some_pipelines_never(pipeline: str) -> None:
    assert not any(Release(0, minor).reads_deploy_of(pipeline) for minor in range(20, 34, 2))


def test_a_pipeline_that_a_file_must_name_is_known_where_the_file_is_read() -> None:
    for model, name in PIPELINE_TO_NAME.items():
        assert PIPELINE_SINCE[name] <= DEPLOY_READ_SINCE[model]
    assert not Release(0, 24).knows_pipeline("wan2_2_ti2v") and Release(0, 26).knows_pipeline("wan2_2_ti2v")
    assert Release(0, 22).knows_pipeline("somebodys")


def test_a_model_goes_by_its_own_class_name() -> None:
    assert model_class("Wan22I2VPipeline") == "WanImageToVideoPipeline"
    assert {model_class(name) for name in PUBLISHED_SINCE} == set(PUBLISHED_SINCE)


def test_what_reads_a_deploy_file_publishes_its_indices() -> None:
    assert DEPLOY_READ_SINCE.keys() <= PUBLISHED_SINCE.keys()
    assert "WanS2VPipeline" not in PUBLISHED_SINCE  # its attention has no prefix, so no layer index
    for since in (*PUBLISHED_SINCE.values(), *DEPLOY_READ_SINCE.values()):
        assert Release(*since).is_known
