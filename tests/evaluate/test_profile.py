"""Device profiles and what is projected from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fa_tuner.domain.errors import DocumentError, NotFoundError, UsageError
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.evaluate.profile import DEFAULT_PROFILE, DeviceProfile, load_profile, shipped_profiles

GRID = Grid(4, tuple(range(40)))
OWN = Workload(
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers", ("a cat",), 1280, 720, 61, 4, task="i2v", image="0" * 64, guidance=1.0
)
EVERYTHING = SkipPolicy("fp8")
GOOD: dict[str, Any] = {
    "name": "mine", "device": "a card", "source": "measured here", "dit_seconds": 10.0, "attention_seconds": 4,
    "quantized_attention_seconds": {"fp8": 3.0, "mxfp4": 2.0},
    "workload": {"task": "t2v", "height": 480, "width": 832, "frames": 81, "steps": 40},
}  # fmt: skip


@pytest.fixture
def shipped() -> DeviceProfile:
    return load_profile(DEFAULT_PROFILE)


def written(folder: Path, **changes: Any) -> Path:
    document = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(DocumentError) as caught:
        load_profile(str(path))
    return str(caught.value)


def test_every_shipped_profile_loads() -> None:
    assert DEFAULT_PROFILE in shipped_profiles()
    for name in shipped_profiles():
        profile = load_profile(name)
        assert profile.name == name and profile.source


def test_the_published_figure_comes_back(shipped: DeviceProfile) -> None:
    """PR 2640: denoising 14.13 s, attention 6.81 -> 5.43 s under FP8, denoising 12.75 s."""
    latency = shipped.project(EVERYTHING, GRID, OWN)
    assert latency.seconds == pytest.approx(12.75, abs=0.005)
    assert latency.relative == pytest.approx((14.13 - 1.38) / 14.13)
    assert latency.source == "projected" and latency.spread == 0 and latency.repeats == 0
    assert "ascend-pr2640" in latency.detail and "2640" in shipped.source


def test_native_takes_the_native_time(shipped: DeviceProfile) -> None:
    latency = shipped.project(SkipPolicy(), GRID, OWN)
    assert (latency.relative, latency.seconds, latency.gain) == (1.0, pytest.approx(14.13), 0.0)


@pytest.mark.parametrize(("text", "share"), [("0/", 0.75), ("/0-19", 0.5), ("0,1/0-9", 0.375), ("0-2/1-39", 1 / 160)])
def test_the_gain_is_in_proportion_to_the_cells(shipped: DeviceProfile, text: str, share: float) -> None:
    latency = shipped.project(SkipPolicy.parse(text, ("fp8",), GRID), GRID, OWN)
    assert latency.gain == pytest.approx(1.38 / 14.13 * share)


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 720}, {"width": 1280}, {"frames": 81}, {"steps": 8}, {"task": "t2v", "image": None},
        {"model": "Wan-AI/Wan2.1-I2V-14B-Diffusers"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_seconds_only_for_its_own_workload(shipped: DeviceProfile, changes: dict[str, Any]) -> None:
    other = shipped.project(EVERYTHING, GRID, replace(OWN, **changes))
    assert other.seconds is None
    assert other.relative == pytest.approx(12.75 / 14.13)


def test_no_seconds_without_a_workload(tmp_path: Path) -> None:
    profile = load_profile(str(written(tmp_path, workload=...)))
    assert profile.project(EVERYTHING, GRID, OWN).seconds is None


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    profile = load_profile(str(written(tmp_path)))
    work = Workload("any", ("a cat",), 480, 832, 81, 40)
    assert profile.project(SkipPolicy("mxfp4"), GRID, work).seconds == pytest.approx(8.0)
    assert profile.project(SkipPolicy("mxfp4"), GRID, replace(work, steps=20)).seconds is None


def test_quantization_that_is_slower(tmp_path: Path) -> None:
    profile = load_profile(str(written(tmp_path, quantized_attention_seconds={"fp8": 6.0})))
    latency = profile.project(EVERYTHING, GRID, OWN)
    assert latency.relative == pytest.approx(1.2) and latency.gain < 0


def test_a_dtype_without_a_figure_is_refused(shipped: DeviceProfile) -> None:
    shipped.check("fp8")
    for refused in (lambda: shipped.check("mxfp4"), lambda: shipped.project(SkipPolicy("mxfp4"), GRID, OWN)):
        with pytest.raises(UsageError, match=r"has no figure for mxfp4 \(it has fp8\); give --device-profile"):
            refused()


@pytest.mark.parametrize("key", ["name", "source", "dit_seconds", "attention_seconds", "quantized_attention_seconds"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"lacks {key!r}" in refusal(written(tmp_path, **{key: ...}))


@pytest.mark.parametrize("value", [0, -1.5, "12 s", True, None, [1]])
@pytest.mark.parametrize("key", ["dit_seconds", "attention_seconds"])
def test_seconds_must_be_a_number_above_0(tmp_path: Path, key: str, value: Any) -> None:
    assert f"{key} is {value!r}" in refusal(written(tmp_path, **{key: value}))


@pytest.mark.parametrize("value", [0, -3.0, "3 s", False])
def test_so_must_those_by_dtype(tmp_path: Path, value: Any) -> None:
    assert "quantized_attention_seconds.fp8" in refusal(written(tmp_path, quantized_attention_seconds={"fp8": value}))


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_none(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("dit_seconds: 10.0", f"dit_seconds: {text}"))
    assert text in refusal(path)


@pytest.mark.parametrize("value", [[], {}, None, "3", 3])
def test_dtypes_must_be_a_mapping(tmp_path: Path, value: Any) -> None:
    assert "must map dtypes to seconds" in refusal(written(tmp_path, quantized_attention_seconds=value))


def test_attention_is_a_part_of_denoising(tmp_path: Path) -> None:
    assert "attention_seconds exceeds dit_seconds" in refusal(written(tmp_path, attention_seconds=10.1))


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    assert "unknown key 'dit_second'" in refusal(written(tmp_path, dit_second=1))
    path = written(tmp_path, zebra=1)
    path.write_text(path.read_text() + "7: 1\n")
    assert "unknown key 7" in refusal(path)


@pytest.mark.parametrize("workload", [[1], "t2v", 5, {"hight": 480}, {1: 2, "hight": 480}, {"model": "Wan"}])
def test_a_workload_with_a_typing_error_would_match_too_much(tmp_path: Path, workload: Any) -> None:
    assert "workload" in refusal(written(tmp_path, workload=workload))


@pytest.mark.parametrize(
    "text", ["- 1\n- 2\n", "just text\n", "", "{", "name: a\nname: b\n", "name: !!python/object:os.system x\n"]
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert "p.yaml" in refusal(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["ascend-pr264", "no/such/file.yaml", "x" * 10_000, "nul\0", "", "/"])
def test_neither_a_file_nor_shipped(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_profile(name)
    assert DEFAULT_PROFILE in str(caught.value) and len(str(caught.value)) < 500


# --- layers of unequal cost -----------------------------------------------------------------------------------------


def test_dear_layers_save_more(tmp_path: Path) -> None:
    """Ten layers that cost three times as much as the thirty others: half of attention."""
    profile = load_profile(str(written(tmp_path, layer_costs={"0-9": 3.0, "10-39": 1})))
    assert profile.costs(GRID) == (3.0,) * 10 + (1.0,) * 30
    gain = profile.project(EVERYTHING, GRID, OWN).gain
    assert gain == pytest.approx(0.1)
    for text, share in (("/0-9", 0.5), ("/10-39", 0.5), ("0,1/0-9", 0.25), ("/0", 1 - 3 / 60), ("/39", 1 - 1 / 60)):
        assert profile.project(SkipPolicy.parse(text, ("fp8",), GRID), GRID, OWN).gain == pytest.approx(share * gain)


def test_a_layer_without_a_cost_costs_1(tmp_path: Path) -> None:
    profile = load_profile(str(written(tmp_path, layer_costs={"3": 2, "5,7-8": 0.5})))
    assert profile.costs(Grid(1, (2, 3, 5, 6, 8))) == (1.0, 2.0, 0.5, 1.0, 0.5)
    bare = load_profile(str(written(tmp_path, layer_costs={3: 2})))  # a key that YAML reads as a number
    assert bare.costs(Grid(1, (2, 3))) == (1.0, 2.0)


@pytest.mark.parametrize("costs", [..., None, {"0-39": 2.5}, {"0": 1.0}])
def test_where_all_cost_the_same_there_are_no_costs(tmp_path: Path, costs: Any) -> None:
    assert load_profile(str(written(tmp_path, layer_costs=costs))).costs(GRID) is None


def test_costs_make_another_profile(tmp_path: Path) -> None:
    names = {load_profile(str(written(tmp_path, layer_costs={"0": cost}))).name for cost in (2.0, 3.0)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([1.0, 2.0], "must map layers to costs"), ({}, "must map layers to costs"),
        ({"0-3": 0}, "layer_costs of 0-3 is 0; it must be a number above 0"), ({"0-3": -1.0}, "above 0"),
        ({"0-3": float("inf")}, "not a finite number"), ({"0-3": 10**400}, "at most 40 are allowed"),
        ({"0-3": True}, "above 0"), ({"0-3": "2"}, "above 0"), ({"first": 2.0}, "'f' at position 0"),
        ({"3-0": 2.0}, "runs backwards"),
        ({"": 2.0}, "a cost is given for no layer"), ({"0-3": 2.0, "3-5": 1.0}, "layer 3 has two costs"),
    ],
)  # fmt: skip
def test_costs_that_cannot_be_taken(tmp_path: Path, costs: Any, said: str) -> None:
    refused = refusal(written(tmp_path, layer_costs=costs))
    assert said in refused and str(tmp_path) in refused


def test_costs_of_another_model_are_refused(tmp_path: Path) -> None:
    profile = load_profile(str(written(tmp_path, layer_costs={"0-40": 2.0})))
    with pytest.raises(UsageError, match=r"gives a cost for layer 40, and this model's last one is 39"):
        profile.costs(GRID)
