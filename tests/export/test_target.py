"""An export for one version of vLLM-Omni: what is refused, and what its comments say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import Release
from fa_tuner.export import Target, exporter, merge_into, target_of
from fa_tuner.export.target import IN_THE_BASE

Make = Callable[..., Recommendation]
VERSIONS = ("0.22", "0.24", "0.26", "0.28", "0.30")
DEPLOY = "stages:\n  - stage_id: 0\n"
LEGACY = "stage_args:\n  - stage_id: 0\n    stage_type: diffusion\n    engine_args: {model_stage: dit}\n"


def exported(recommendation: Recommendation, name: str, version: str) -> str:
    """Without the line breaks of its comments."""
    return exporter(name).export(recommendation, 0, Release.parse(version)).replace("\n#   ", " ")


@pytest.mark.parametrize("name", ["deploy", "stage-args", "flags"])
def test_before_the_selectors_nothing_is_exported(make: Make, name: str) -> None:
    with pytest.raises(UsageError, match=r"0\.20 has no skip selectors, they exist from 0\.22 on; serve with a newer"):
        exported(make(), name, "0.20")


@pytest.mark.parametrize("version", ["0.28", "0.30", "0.32"])
def test_stage_args_ended_with_0_26(make: Make, version: str) -> None:
    with pytest.raises(UsageError, match=rf"{version} refuses the format stage-args.*use --format deploy or flags"):
        exported(make(), "stage-args", version)
    with pytest.raises(UsageError, match=rf"{version} refuses the format stage-args"):
        merge_into(LEGACY, make(), 0, "f.yaml", Release.parse(version))


@pytest.mark.parametrize("dtype", ["mxfp8", "mxfp4"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_dtype_that_no_backend_declares_is_refused(make: Make, dtype: str, version: str) -> None:
    recommendation = make(dtype=dtype)
    if version == "0.30":
        assert dtype in exported(recommendation, "flags", version)
    else:
        with pytest.raises(
            UsageError, match=rf"{version} has no dtype {dtype} on an NPU, only fp8; serve with a newer"
        ):
            exported(recommendation, "flags", version)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("deploy", version) for version in VERSIONS[2:]),
        *(("stage-args", version) for version in VERSIONS[:3]),
        *(("flags", version) for version in VERSIONS),
    ],
)
def test_only_that_versions_behaviour_is_told(make: Make, name: str, version: str) -> None:
    text = exported(make(), name, version)
    warns = f"unsupported, vLLM-Omni {version} only warns and runs everything native."
    refuses = f"unsupported, vLLM-Omni {version} refuses to start."
    assert ((warns in text), (refuses in text)) == ((False, True) if version == "0.30" else (True, False))
    assert ("drops a misspelt key of a stage in silence" in text) == (version != "0.30" and name != "flags")
    assert "up to 0.28" not in text
    assert "ValueError" not in text
    assert "looked up" not in text


def test_a_newer_version_was_not_looked_up(make: Make) -> None:
    for name in ("deploy", "flags"):
        assert "This version was not looked up; what is said here is what 0.30 does." in exported(make(), name, "0.32")


def test_values_do_not_depend_on_the_version(make: Make) -> None:
    for name in ("deploy", "flags"):
        plain = [line for line in exporter(name).export(make()).splitlines() if not line.startswith("#")]
        for version in ("0.26", "0.28", "0.30", "1.0"):
            text = exporter(name).export(make(), 0, Release.parse(version))
            assert [line for line in text.splitlines() if not line.startswith("#")] == plain


def test_a_deploy_file_that_would_be_ignored_is_refused(make: Make) -> None:
    for version in ("0.22", "0.24"):
        with pytest.raises(UsageError, match=r"ignores a deploy file for WanPipeline, in silence; use --format flags"):
            exported(make(), "deploy", version)
    vace = make(environment={"pipeline": "Wan22VACEPipeline"})  # so the engine vllm-omni calls it
    for version in ("0.26", "0.30", "0.32"):
        with pytest.raises(
            UsageError, match="use --format flags, or --into a deploy file that has pipeline: wan2_2_ti"
        ):
            exported(vace, "deploy", version)
        assert "ignores" not in exported(vace, "flags", version)
        with pytest.raises(UsageError, match="ignores a deploy file"):
            merge_into(DEPLOY, vace, 0, "f.yaml", Release.parse(version))
        assert "ignore" not in merge_into(f"pipeline: wan2_2_ti2v\n{DEPLOY}", vace, 0, "f.yaml", Release.parse(version))


def test_a_file_that_must_name_its_pipeline_is_refused_where_that_is_unknown(make: Make) -> None:
    i2v = make(environment={"pipeline": "Wan22I2VPipeline"})
    for version in ("0.22", "0.24"):
        with pytest.raises(
            UsageError, match=r"ignores a deploy file for WanImageToVideoPipeline, in silence; use --format flags$"
        ):
            exported(i2v, "deploy", version)
        for text in (DEPLOY, f"pipeline: wan2_2_ti2v\n{DEPLOY}"):
            with pytest.raises(UsageError, match="ignores a deploy file"):
                merge_into(text, i2v, 0, "f.yaml", Release.parse(version))
        assert "pipeline: somebodys\n" in merge_into(
            f"pipeline: somebodys\n{DEPLOY}", i2v, 0, "f.yaml", Release.parse(version)
        )
        said = merge_into("base_config: b.yaml\n", i2v, 0, "f.yaml", Release.parse(version)).replace("\n#   ", " ")
        assert "unless its base_config names a pipeline: where it does not, use --format flags." in said
    for version in ("0.26", "0.28", "0.30"):
        text = exported(i2v, "deploy", version)
        assert "\npipeline: wan2_2_ti2v\n" in text and "WARNING: vLLM-Omni" not in text
        assert merge_into(DEPLOY, i2v, 0, "f.yaml", Release.parse(version)).count("wan2_2_ti2v") == 1


def test_without_a_version_the_comments_say_where_a_deploy_file_is_ignored(make: Make) -> None:
    def comments(pipeline: str, name: str = "deploy") -> str:
        return exporter(name).export(make(environment={"pipeline": pipeline})).replace("\n#   ", " ")

    assert "Before 0.26 this file is ignored in silence for WanPipeline: use --format flags there." in comments(
        "WanPipeline"
    )
    assert "WARNING: vLLM-Omni up to 0.30 ignores this file for WanVACEPipeline, in silence" in comments(
        "WanVACEPipeline"
    )
    i2v = comments("WanImageToVideoPipeline")
    assert "Before 0.26 this file is ignored in silence for WanImageToVideoPipeline: use --format flags there." in i2v
    assert "because vLLM-Omni reads no deploy file for WanImageToVideoPipeline without." in i2v
    assert "With them it ignores --default-sampling-params and --num-gpus, as for text-to-video" in i2v
    for text in (
        comments("HunyuanImage3ForCausalMM"), comments("Other\nPipeline"), comments("WanImageToVideoPipeline", "flags")
    ):  # fmt: skip
        assert "ignore" not in text
    vace = make(environment={"pipeline": "WanVACEPipeline"})
    assert "WARNING: vLLM-Omni up" in merge_into(DEPLOY, vace, 0, "f.yaml")
    assert "WARNING: vLLM-Omni up" not in merge_into(f"base_config: b.yaml\n{DEPLOY}", vace, 0, "f.yaml")


def test_who_reads_a_file_is_seen_in_it() -> None:
    assert target_of(DEPLOY, "f") == Target("deploy")
    assert target_of(LEGACY, "f", Release(0, 26)) == Target("stage-args", Release(0, 26))
    assert target_of("\ufeffpipeline: p\n", "f") == Target("deploy", pipeline="p")
    assert target_of("base_config: b\npipeline:\n", "f") == Target("deploy", pipeline=IN_THE_BASE)
