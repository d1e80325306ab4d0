"""Landscape files: what is written is read back, and what is wrong is refused with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_tuner.domain.errors import DocumentError, NotFoundError, UsageError
from fa_tuner.domain.measurement import METRICS, CaseQuality, Measurement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Case
from fa_tuner.engines import landscape_file
from fa_tuner.engines.base import Description, Shadow
from fa_tuner.engines.landscape import Landscape, LatencyModel
from fa_tuner.engines.synthetic import Synthetic, synthetic_landscape
from tests.support.tables import every_policy, tabulated

FORMULA = synthetic_landscape(3, 2, prompts=2, seed=3, cliffs=1)
GRID = FORMULA.grid
POLICIES = tuple(every_policy(GRID))
DOCUMENT = tabulated(FORMULA, POLICIES).document()

Change = Callable[[dict[str, Any]], object]


def written(folder: Path, document: Any, name: str = "x.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        Landscape.read(path)
    assert str(caught.value).startswith(f"landscape {str(path)!r}: ")
    assert str(caught.value).endswith("docs/landscapes.md describes the format")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_table_round_trips(tmp_path: Path, name: str) -> None:
    landscape = tabulated(FORMULA, POLICIES)
    landscape.write(tmp_path / name)
    again = Landscape.read(tmp_path / name)

    assert again.document() == landscape.document()
    assert again.workload == landscape.workload
    assert again.record.policies == POLICIES
    assert again.size == len(POLICIES) == 1 + 7 * 3
    for policy in POLICIES:
        assert again.relative_latency(policy) == pytest.approx(FORMULA.relative_latency(policy))
        for case in again.workload.cases:
            quality, expected = again.record.quality(policy, case), FORMULA.record.quality(policy, case)
            assert quality is not None and expected is not None
            assert quality.metrics == pytest.approx(expected.metrics, rel=1e-8)
            assert quality.identical == expected.identical == policy.is_native
    assert [path.name for path in tmp_path.iterdir()] == [name]


SHADOWS = {
    FORMULA.workload.cases[0]: {Shadow(0, (0, 1), "fp8"): 1.25e-7, Shadow(2, (1,), "mxfp4"): 0.0},
    FORMULA.workload.cases[1]: {Shadow(0, (0, 1), "fp8"): 3.0},
}


def test_shadows_round_trip(tmp_path: Path) -> None:
    landscape = replace(tabulated(FORMULA, POLICIES), shadows=SHADOWS)
    landscape.write(tmp_path / "x.json")
    again = Landscape.read(tmp_path / "x.json")
    assert again.shadows == SHADOWS and again.has_shadows
    assert again.document()["shadows"] == {
        "probes": [["fp8", 0, "0,1"], ["mxfp4", 2, "1"]], "values": [[1.25e-7, 0.0], [3.0, None]],
    }  # fmt: skip
    one, other = FORMULA.workload.cases
    assert again.shadow(Shadow(2, (1,), "mxfp4"), one) == 0.0
    assert again.shadow(Shadow(2, (1,), "mxfp4"), other) is None
    assert again.shadow(Shadow(0, (0, 1), "fp8"), Case("another", 0)) is None


def test_without_shadows_there_is_no_such_key(tmp_path: Path) -> None:
    landscape = tabulated(FORMULA, POLICIES)
    assert "shadows" not in landscape.document() and not landscape.has_shadows
    landscape.write(tmp_path / "x.json")
    assert Landscape.read(tmp_path / "x.json").shadows == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("probes"), "shadows.probes is missing"),
        (lambda s: s.pop("values"), "shadows.values is missing"),
        (lambda s: s.update(notes=1), "shadows has an unknown key 'notes'"),
        (lambda s: s["probes"].__setitem__(0, ["fp8", 0]), re.escape("probes[0] must be a list of dtype, step and")),
        (lambda s: s["probes"].__setitem__(0, "fp8"), re.escape("probes[0] must be a list of dtype, step and")),
        (lambda s: s["probes"].__setitem__(0, ["fp8", True, "0"]), re.escape("probes[0] must be a list of dtype")),
        (lambda s: s["probes"].__setitem__(1, ["fp6", 0, "0"]), re.escape("probes[1] is of 'fp6' at step 0; dtypes")),
        (lambda s: s["probes"].__setitem__(1, ["fp8", 3, "0"]), "at step 3; .*steps 0 to 2"),
        (lambda s: s["probes"].__setitem__(1, ["fp8", -1, "0"]), "at step -1"),
        (lambda s: s["probes"].__setitem__(1, ["fp8", 0, ""]), "layers '' must be some of those"),
        (lambda s: s["probes"].__setitem__(1, ["fp8", 0, "2"]), "layer 2 at position 0 does not exist"),
        (lambda s: s["probes"].__setitem__(1, ["fp8", 0, "0-1"]), "is written '0,1'"),
        (lambda s: s["probes"].__setitem__(1, ["fp8", 0, "0,1"]), "has one of them twice"),
        (lambda s: s["values"].pop(), "shadows.values has 1 entries for 2 cases"),
        (lambda s: s["values"][1].pop(), re.escape("shadows.values[1] has 1 entries for 2 probes")),
        (lambda s: s["values"][1].__setitem__(0, "1"), re.escape("shadows.values[1] holds str")),
        (lambda s: s["values"][0].__setitem__(1, -1e-9), re.escape("shadows.values[0][1] is below 0")),
    ],
)
def test_a_fault_in_the_shadows(tmp_path: Path, change: Change, message: str) -> None:
    document = json.loads(json.dumps(replace(tabulated(FORMULA, POLICIES), shadows=SHADOWS).document()))
    change(document["shadows"])
    assert_refused(written(tmp_path, document), message)


def test_a_formula_has_no_recorded_shadows(tmp_path: Path) -> None:
    document = {**FORMULA.document(), "shadows": {"probes": [], "values": [[], []]}}
    assert_refused(written(tmp_path, document), "the document has an unknown key 'shadows'")


def test_the_same_landscape_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        tabulated(FORMULA, POLICIES).write(tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "before")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        tabulated(FORMULA, POLICIES).write(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_holdout_is_kept_where_it_was_measured(tmp_path: Path) -> None:
    formula = synthetic_landscape(2, 2, prompts=1, holdout=1)
    (searched,), (held,) = formula.workload.cases, formula.workload.holdout_cases
    table = tabulated(formula, every_policy(formula.grid))
    finalist = SkipPolicy.parse("0/", ("fp8",), formula.grid)
    measured = table.record.quality(finalist, searched)
    on_holdout = formula.record.quality(finalist, held)
    assert measured is not None and on_holdout is not None
    other = SkipPolicy.parse("1/", ("fp8",), formula.grid)

    def measurement(policy: SkipPolicy, *holdout: CaseQuality) -> Measurement:
        found = tabulated(formula, [policy]).record.quality(policy, searched)
        assert found is not None
        from fa_tuner.domain.measurement import Coverage, Latency

        return Measurement(policy, Latency(0.8, "projected"), (found,), Coverage(0, 0, 0, True), holdout)

    landscape = Landscape.from_measurements(
        formula.workload,
        Description("e", formula.grid, 2, ("fp8",), "projected", "emulated", "cpu", "WanPipeline"),
        [measurement(finalist, on_holdout), measurement(other)],
        made_by="",
        noise_floor_db=100,
        latency=formula.latency,
    )
    landscape.write(tmp_path / "x.json")
    again = Landscape.read(tmp_path / "x.json").record
    assert again.quality(finalist, held) is not None
    assert again.quality(other, held) is None
    assert again.quality(other, searched) is not None
    assert again.relative_latency(finalist) is None  # projections are computed, not recorded


def test_native_needs_no_record() -> None:
    landscape = tabulated(FORMULA, POLICIES[1:2])
    case = landscape.workload.cases[0]
    native = landscape.record.quality(SkipPolicy(), case)
    assert native is not None and native.identical and native.metrics["psnr_db"] == 100.0
    assert landscape.relative_latency(SkipPolicy()) == 1.0
    assert landscape.record.quality(SkipPolicy(), Case("another", 0)) is None


def test_without_a_recorded_latency_the_model_answers() -> None:
    landscape = tabulated(FORMULA, POLICIES, timed=False)
    half = SkipPolicy.parse("/0", ("fp8",), GRID)
    assert landscape.relative_latency(half) == pytest.approx(1 - 0.5 * 0.5 * (1 - 0.8))


def test_a_policy_twice_is_not_recorded() -> None:
    with pytest.raises(DocumentError, match="fp8:/ was measured twice"):
        tabulated(FORMULA, [POLICIES[1], POLICIES[1]])


def test_a_case_of_another_workload_is_not_recorded() -> None:
    with pytest.raises(DocumentError, match="not in the workload"):
        foreign = replace(FORMULA.workload, prompts=("something else",))
        measured = [CaseQuality(Case("unknown", 0), dict.fromkeys(METRICS, 1.0))]
        from fa_tuner.domain.measurement import Coverage, Latency

        Landscape.from_measurements(
            foreign,
            Description("e", GRID, 2, ("fp8",), "projected", "emulated", "cpu", "WanPipeline"),
            [Measurement(POLICIES[1], Latency(1.0, "measured"), tuple(measured), Coverage(0, 0, 0, True))],
            made_by="",
            noise_floor_db=100,
            latency=FORMULA.latency,
        )


def test_a_large_table_is_read_in_seconds(tmp_path: Path) -> None:
    """2^14 policies x 4 cases."""
    formula = synthetic_landscape(7, 7, prompts=4)
    keys = [policy.key for policy in every_policy(formula.grid)]
    keys = keys + [key.replace("fp8", "mxfp8") for key in keys[1 : 2**14 - len(keys) + 1]]
    column = np.linspace(20, 60, len(keys)).tolist()
    document = {
        **tabulated(formula, [SkipPolicy()]).document(),
        "evaluations": {
            "policies": keys,
            "cases": [{"prompt": case.prompt, "seed": case.seed} for case in formula.workload.cases],
            "metrics": {name: [column] * 4 for name in METRICS},
            "identical": [[0]] * 4,
            "relative_latency": column,
        },
    }
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode(), compresslevel=1))
    started = time.perf_counter()
    landscape = Landscape.read(path)
    assert time.perf_counter() - started < 5.0  # about half a second on an idle machine
    assert landscape.size == len(keys) == 2**14
    last = landscape.record.quality(landscape.record.policies[-1], formula.workload.cases[-1])  # type: ignore[index]
    assert last is not None and last.metrics["psnr_db"] == 60.0


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[]", 'no "format"'),
            ("{}", 'no "format"'),
            ('{"format": "other"}', 'no "format"'),
            ('{"a": NaN}', "NaN"),
            ('{"a": -Infinity}', "-Infinity"),
            ('{"a": 1, "a": 2}', "given twice"),
            ('{"a": ' + "9" * 5000 + "}", "not JSON"),
            ("[" * 100_000, "nested too deeply|not JSON"),
        ],
    )
    def test_what_is_no_landscape(self, tmp_path: Path, text: str, message: str) -> None:
        assert_refused(written(tmp_path, text), message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.pop("version"), "version is missing"),
            (lambda d: d.update(version=2), "version is 2; this fa-tune reads version 1"),
            (lambda d: d.update(version=True), "version is True"),
            (lambda d: d.update(extra=1), "unknown key 'extra'"),
            (lambda d: d.pop("evaluations"), "either evaluations or synthetic"),
            (lambda d: d.update(synthetic={}), "either evaluations or synthetic"),
            (lambda d: d.pop("made_by"), "made_by is missing"),
            (lambda d: d.update(noise_floor_db="100"), "noise_floor_db is '100'; it must be a number"),
            (lambda d: d.update(noise_floor_db=1e301), "noise_floor_db is not a finite number"),
            (lambda d: d["workload"].pop("prompts"), "workload lacks 'prompts'"),
            (lambda d: d["workload"].update(prompts=[]), "at least one prompt"),
            (lambda d: d["workload"].update(height="a"), "workload.height"),
            (lambda d: d["workload"].update(steps=4), "environment.steps is 3, but workload.steps is 4"),
            (lambda d: d["environment"].pop("device"), "environment.device is missing"),
            (lambda d: d["environment"].update(layers=[]), "environment.layers"),
            (lambda d: d["environment"].update(layers=[1, 0]), "environment.layers must be ascending"),
            (lambda d: d["environment"].update(layers=["a"]), "environment.layers"),
            (lambda d: d["environment"].update(layers=[{}]), "environment.layers"),
            (lambda d: d["environment"].update(dtypes=["int4"]), "environment.dtypes"),
            (lambda d: d["environment"].update(dtypes=[[]]), "environment.dtypes"),
            (lambda d: d["environment"].update(calls_per_cell=0), "environment.calls_per_cell is 0"),
            (lambda d: d["environment"].update(versions={"a": 1}), "environment.versions"),
            (lambda d: d["latency"].update(attention_share=1.0), "attention_share is 1.0"),
            (lambda d: d["latency"].update(native_denoise_seconds=0), "seconds must be finite and above 0"),
            (lambda d: d["latency"].update(native_end_to_end_seconds=1.0), "end to end not below denoising"),
            (lambda d: d["latency"]["attention_ratio"].pop("fp8"), "attention_ratio.fp8 is missing"),
            (lambda d: d["latency"]["attention_ratio"].update(fp8=0), "attention_ratio.fp8 is 0.0"),
            (lambda d: d["latency"]["attention_ratio"].update(x=1), "attention_ratio.x"),
        ],
    )
    def test_a_fault_outside_the_table(self, tmp_path: Path, change: Change, message: str) -> None:
        document = json.loads(json.dumps(DOCUMENT))
        change(document)
        assert_refused(written(tmp_path, document), message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda e: e.pop("policies"), "evaluations.policies is missing"),
            (lambda e: e["policies"].pop(), re.escape("evaluations.metrics.psnr_db[0] has 22 entries for 21 policies")),
            (lambda e: e["policies"].__setitem__(3, e["policies"][4]), "has '.*' twice"),
            (lambda e: e["policies"].__setitem__(0, 5), re.escape("policies[0] must be text")),
            (lambda e: e["policies"].__setitem__(1, "int4:/"), re.escape("policies[1] is 'int4:/'")),
            (lambda e: e["policies"].__setitem__(1, "fp8:0"), re.escape("policies[1] is 'fp8:0'")),
            (lambda e: e["policies"].__setitem__(1, "fp8:9/"), "step 9 at position 0 does not exist"),
            (lambda e: e["policies"].__setitem__(1, "fp8:/0-9999999"), "layer selector"),
            (lambda e: e["policies"].__setitem__(1, "fp8:1,0/"), "is written '0,1'"),
            (lambda e: e["policies"].__setitem__(1, "fp8:0-2/"), 'skips every step; that policy is written "native"'),
            (lambda e: e["policies"].__setitem__(1, "fp8:/0,1"), "skips every layer"),
            (lambda e: e["cases"].pop(), "entries for 1 cases"),
            (lambda e: e["cases"].clear(), "evaluations.cases is empty"),
            (lambda e: e["cases"].__setitem__(1, e["cases"][0]), "which is given twice"),
            (lambda e: e["cases"].__setitem__(1, {"prompt": "x", "seed": 0}), "not in the workload"),
            (lambda e: e["cases"].__setitem__(1, {"prompt": "x"}), re.escape("cases[1].seed is missing")),
            (lambda e: e["cases"].__setitem__(1, 3), re.escape("cases[1] must be an object")),
            (lambda e: e["metrics"].pop("mae"), "evaluations.metrics.mae is missing"),
            (lambda e: e["metrics"].update(lpips=[]), "unknown key 'lpips'"),
            (lambda e: e["metrics"]["mae"].pop(), re.escape("metrics.mae has 1 entries for 2 cases")),
            (lambda e: e["metrics"]["mae"][1].pop(), re.escape("metrics.mae[1] has 21 entries for 22 policies")),
            (lambda e: e["metrics"]["mae"].__setitem__(0, {}), re.escape("metrics.mae[0] has no list entries")),
            (lambda e: e["metrics"]["mae"][0].__setitem__(2, "1"), re.escape("metrics.mae[0] holds str")),
            (lambda e: e["metrics"]["mae"][0].__setitem__(2, True), re.escape("metrics.mae[0] holds bool")),
            (lambda e: e["metrics"]["mae"][0].__setitem__(2, [1]), re.escape("metrics.mae[0] holds list")),
            (lambda e: e["metrics"]["mae"][0].__setitem__(2, 10**400), "not finite"),
            (lambda e: e["metrics"]["mae"][0].__setitem__(2, None), "has some metrics of case 0 but not all"),
            (lambda e: e.pop("identical"), "evaluations.identical is missing"),
            (lambda e: e["identical"].pop(), re.escape("identical has 1 entries for 2 cases")),
            (lambda e: e["identical"].__setitem__(0, [99]), re.escape("identical[0] must list indices")),
            (lambda e: e["identical"].__setitem__(0, [-1]), re.escape("identical[0] must list indices")),
            (lambda e: e["relative_latency"].pop(), "relative_latency has 21 entries"),
            (lambda e: e["relative_latency"].__setitem__(4, 0), re.escape("relative_latency[4] must be above 0")),
            (lambda e: e["relative_latency"].__setitem__(4, -1), re.escape("relative_latency[4] must be above 0")),
            (lambda e: e.update(notes=""), "unknown key 'notes'"),
        ],
    )
    def test_a_fault_in_the_table(self, tmp_path: Path, change: Change, message: str) -> None:
        document = json.loads(json.dumps(DOCUMENT))
        change(document["evaluations"])
        assert_refused(written(tmp_path, document), message)

    def test_an_overflowing_number(self, tmp_path: Path) -> None:
        document = json.loads(json.dumps(DOCUMENT))
        document["evaluations"]["metrics"]["mae"][1][7] = 123456.5
        text = json.dumps(document).replace("123456.5", "1e999")
        assert_refused(written(tmp_path, text), re.escape("metrics.mae[1][7] is not finite"))

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_bytes(b'{"format": "\xff"}')
        assert_refused(path, "not JSON")

    @pytest.mark.parametrize("data", [b"\x1f\x8b", b"\x1f\x8bnonsense", gzip.compress(b"{" * 5000)[:-9]])
    def test_a_broken_archive(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "x.json.gz"
        path.write_bytes(data)
        assert_refused(path, "cannot be read")

    def test_a_file_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        with path.open("wb") as file:
            file.truncate(landscape_file.MAX_BYTES + 1)  # sparse
        assert_refused(path, "at most 268435456 are read")

    def test_an_archive_that_unfolds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(landscape_file, "MAX_BYTES", 100_000)
        path = tmp_path / "x.json.gz"
        path.write_bytes(gzip.compress(b" " * 200_000))
        assert_refused(path, "decompresses to more than")

    def test_a_folder(self, tmp_path: Path) -> None:
        assert_refused(tmp_path, "cannot be read")

    @pytest.mark.parametrize("name", ["none.json", "none/x.json", "x.json/y"])
    def test_what_is_not_there(self, tmp_path: Path, name: str) -> None:
        written(tmp_path, "{}")
        with pytest.raises(NotFoundError, match="there is no landscape"):
            Landscape.read(tmp_path / name)

    @pytest.mark.parametrize("path", ["a\0b", "x" * 10_000])
    def test_what_is_no_path(self, path: str) -> None:
        with pytest.raises(DocumentError, match="cannot be read"):
            Landscape.read(path)


class TestSynthetic:
    def test_a_grid_too_large_for_a_table_is_a_small_file(self, tmp_path: Path) -> None:
        landscape = synthetic_landscape(40, 40, prompts=3, seed=5, interactions=0.5, cliffs=3)
        path = tmp_path / "x.json"
        landscape.write(path)
        again = Landscape.read(path)
        assert path.stat().st_size < 4000
        assert again.size > 2**80
        assert again.record.policies is None
        policy = SkipPolicy.parse("0-3,17/5,9-12", ("mxfp4",), again.grid)
        for case in again.workload.cases:
            assert again.record.quality(policy, case) == landscape.record.quality(policy, case)

    def test_a_seed_means_the_same_on_every_machine(self) -> None:
        record = synthetic_landscape(4, 3, prompts=2, seed=1, cliffs=2).record
        assert isinstance(record, Synthetic)
        found = [record.mse(SkipPolicy.parse("0/", ("fp8",), Grid(4, (0, 1, 2))), case) for case in record.cases]
        assert found == pytest.approx([1562.0705922710179, 5223.063947881042], rel=1e-9)

    def test_the_documented_formula(self) -> None:
        """docs/landscapes.md, written down a second time."""

        def uniforms(label: str) -> tuple[float, float]:
            digest = hashlib.sha256(f"7|{label}".encode()).digest()
            u, v = (int.from_bytes(part, "big") for part in (digest[:8], digest[8:16]))
            return (u + 0.5) / 2**64, (v + 0.5) / 2**64

        def z(label: str) -> float:
            u, v = uniforms(label)
            return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)

        def pair(k: int, m: int) -> set[int]:
            u, v = uniforms(f"cliff|{k}")
            a = math.floor(u * m)
            return {a, (a + 1 + math.floor(v * (m - 1))) % m}

        landscape = synthetic_landscape(
            3, 4, 1, 7, spread=0.9, interactions=0.4, disagreement=0.6, cliffs=2, cliff_db=7.0, psnr_db={"fp8": 40.0},
            shadow_noise=0.3, growth=0.2,
        )  # fmt: skip
        record, case = landscape.record, landscape.workload.cases[0]
        assert isinstance(record, Synthetic)
        c = f"{case.seed}|{case.prompt}"
        w = {
            (t, n): math.exp(
                0.9 * z(f"step|{t}") + 0.6 * z(f"step|{t}|{c}") + 0.9 * z(f"layer|{n}") + 0.6 * z(f"layer|{n}|{c}")
                + 0.4 * z(f"cell|{t}|{n}")
            )
            for t in range(3) for n in range(4)
        }  # fmt: skip
        level = min(95.0, max(5.0, 40.0 + 12 * 0.6 * z(f"level|{c}")))
        for policy in every_policy(landscape.grid):
            steps, layers = policy.quantized_steps(landscape.grid), policy.quantized_layers(landscape.grid)
            fallen = 7.0 * ((pair(0, 3) <= set(steps)) + (pair(1, 4) <= set(layers)))
            share = sum(w[t, n] for t in steps for n in layers) / sum(w.values())
            e = 0.0 if policy.is_native else 255**2 * 10 ** ((fallen - level) / 10) * share
            assert record.mse(policy, case) == pytest.approx(e / (1 + e / 8000))
        for shadow, text in ((Shadow(1, (0, 1, 2), "fp8"), "0-2"), (Shadow(2, (3,), "fp8"), "3")):
            t = shadow.step
            share = sum(w[t, n] for n in shadow.layers) / sum(w.values())
            strayed = math.exp(0.3 * z(f"shadow|{t}|{text}") + 0.2 * z(f"growth|{t}"))
            assert landscape.shadow(shadow, case) == pytest.approx(share * strayed * 1e-3 * 10 ** (-level / 10))

    def test_more_quantized_cells_are_never_better(self) -> None:
        landscape = synthetic_landscape(4, 3, prompts=2, seed=2, interactions=1.0, cliffs=4)
        record, grid = landscape.record, landscape.grid
        assert isinstance(record, Synthetic)
        policies = list(every_policy(grid))
        for case in record.cases:
            for a in policies:
                for b in policies:
                    if a.is_native or (
                        set(b.quantized_steps(grid)) >= set(a.quantized_steps(grid))
                        and set(b.quantized_layers(grid)) >= set(a.quantized_layers(grid))
                    ):
                        assert b.is_native or record.mse(a, case) <= record.mse(b, case)

    def test_without_interactions_it_is_of_rank_one(self) -> None:
        record = synthetic_landscape(4, 4, prompts=1, interactions=0.0, psnr_db={"fp8": 60.0}).record
        assert isinstance(record, Synthetic)
        grid, case = record.grid, record.cases[0]
        only = [[SkipPolicy.parse(f"{_but(s)}/{_but(n)}", ("fp8",), grid) for n in range(4)] for s in range(4)]
        cells = np.array([[record.mse(policy, case) for policy in row] for row in only])
        assert np.linalg.matrix_rank(cells, tol=1e-4 * cells.max()) == 1

    def test_a_cliff_is_seen_only_by_both_together(self) -> None:
        record = synthetic_landscape(6, 1, prompts=1, seed=4, cliffs=1, cliff_db=20.0, psnr_db={"fp8": 60.0}).record
        plain = synthetic_landscape(6, 1, prompts=1, seed=4, psnr_db={"fp8": 60.0}).record
        assert isinstance(record, Synthetic) and isinstance(plain, Synthetic)
        case, grid = record.cases[0], record.grid
        changed = {
            policy.skip_steps
            for policy in every_policy(grid)
            if not math.isclose(record.mse(policy, case), plain.mse(policy, case), rel_tol=1e-6)
        }
        quantized = [set(range(6)) - set(skip) for skip in changed]
        assert len(set.intersection(*quantized)) == 2
        assert len(changed) == 2**4

    def test_prompts_disagree_as_asked(self) -> None:
        def levels(disagreement: float) -> list[float]:
            landscape = synthetic_landscape(4, 4, prompts=6, disagreement=disagreement)
            everything = SkipPolicy.parse("/", ("fp8",), landscape.grid)
            return [landscape.record.quality(everything, c).metrics["psnr_db"] for c in landscape.workload.cases]  # type: ignore[union-attr]

        assert np.ptp(levels(0.0)) == 0.0
        assert np.ptp(levels(1.0)) > 8.0

    def test_shadows_are_a_parameter(self, tmp_path: Path) -> None:
        plain, shadowed = synthetic_landscape(3, 2, seed=3), synthetic_landscape(3, 2, seed=3, shadow_noise=0.3)
        (case, *_), everything = plain.workload.cases, Shadow(0, (0, 1), "fp8")
        assert not plain.has_shadows and plain.shadow(everything, case) is None
        assert not {"shadow_noise", "growth"} & set(plain.document()["synthetic"])
        shadowed.write(tmp_path / "x.json")
        again = Landscape.read(tmp_path / "x.json")
        assert again.has_shadows and again.shadow(everything, case) == shadowed.shadow(everything, case)
        for odd in (replace(everything, step=3), replace(everything, layers=(2,)), replace(everything, dtype="fp6")):
            assert again.shadow(odd, case) is None
        assert again.shadow(everything, Case("unknown", 0)) is None

    def test_exact_shadows_add_up(self) -> None:
        landscape = synthetic_landscape(3, 2, prompts=1, shadow_noise=0.0, psnr_db={"fp8": 80.0})
        (case,), record = landscape.workload.cases, landscape.record
        parts = [landscape.shadow(Shadow(step, (layer,), "fp8"), case) for step in range(3) for layer in range(2)]
        assert isinstance(record, Synthetic)
        assert sum(p for p in parts if p) == pytest.approx(
            1e-3 * record.mse(SkipPolicy("fp8"), case) / 255**2, rel=1e-3
        )

    def test_other_dtypes_and_cases_have_no_answer(self) -> None:
        landscape = synthetic_landscape(2, 2, psnr_db={"fp8": 30.0})
        assert landscape.dtypes == ("fp8",)
        assert landscape.record.quality(SkipPolicy("mxfp4"), landscape.workload.cases[0]) is None
        assert landscape.record.quality(SkipPolicy("fp8"), Case("unknown", 0)) is None

    @pytest.mark.parametrize(
        "parameters",
        [
            {"interactions": -1.0}, {"spread": math.nan}, {"disagreement": 6.0}, {"cliffs": 65}, {"cliff_db": math.inf},
            {"shadow_noise": -0.1}, {"growth": 6.0},
            {"psnr_db": {"fp8": 0.0}}, {"layers": 0}, {"steps": 0}, {"prompts": 0}, {"attention_share": 1.0},
        ],
    )  # fmt: skip
    def test_parameters_have_bounds(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            synthetic_landscape(**{"steps": 2, "layers": 2, **parameters})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("seed"), "synthetic.seed is missing"),
            (lambda s: s.update(seed=1.5), "synthetic.seed is 1.5; it must be a whole number"),
            (lambda s: s.update(cliffs=2.0), "synthetic.cliffs"),
            (lambda s: s.update(shadow_noise=None), "synthetic.shadow_noise is None; it must be a number"),
            (lambda s: s.update(spread=9), "synthetic.spread is 9.0; it must lie between 0 and 5"),
            (lambda s: s["psnr_db"].pop("fp8"), "synthetic.psnr_db.fp8 is missing"),
            (lambda s: s["psnr_db"].update(fp8=1000), "synthetic.psnr_db.fp8 is 1000"),
            (lambda s: s.update(cliff=1), "unknown key 'cliff'"),
        ],
    )
    def test_a_fault_is_refused(self, tmp_path: Path, change: Change, message: str) -> None:
        document = json.loads(json.dumps(FORMULA.document()))
        change(document["synthetic"])
        assert_refused(written(tmp_path, document), message)


def test_a_latency_model_is_checked() -> None:
    with pytest.raises(DocumentError):
        LatencyModel(math.nan, 1.0, 0.5, {})
    with pytest.raises(DocumentError):
        LatencyModel(1.0, math.inf, 0.5, {})


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    """The example in docs/landscapes.md."""
    text = (Path(__file__).parents[2] / "docs" / "landscapes.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert example is not None
    landscape = Landscape.read(written(tmp_path, example[1]))
    assert landscape.size == 3
    assert landscape.relative_latency(SkipPolicy.parse("0/", ("fp8",), landscape.grid)) == pytest.approx(0.95)


def _but(index: int) -> str:
    return ",".join(str(i) for i in range(4) if i != index)


# --- several dtypes -----------------------------------------------------------------------------------------------


def of_dtype(dtype: str, prompts: int = 2) -> Landscape:
    formula = synthetic_landscape(2, 2, prompts, seed=1, psnr_db={dtype: 30.0}, shadow_noise=0.1)
    made = tabulated(formula, every_policy(formula.grid, dtype))
    return replace(made, shadows={case: {Shadow(0, (0, 1), dtype): 0.5} for case in made.workload.cases})


def test_joined_landscapes_answer_for_each_dtype(tmp_path: Path) -> None:
    parts = [of_dtype("fp8"), of_dtype("mxfp4")]
    both = Landscape.joined(parts)
    assert both.dtypes == ("fp8", "mxfp4") and both.size == 1 + 2 * 9
    both.write(tmp_path / "both.json")
    again, case = Landscape.read(tmp_path / "both.json"), both.workload.cases[1]
    for part, dtype in zip(parts, both.dtypes, strict=True):
        for policy in every_policy(both.grid, dtype):
            assert both.record.quality(policy, case) == part.record.quality(policy, case)
            assert both.relative_latency(policy) == part.relative_latency(policy)
            assert again.relative_latency(policy) == pytest.approx(part.relative_latency(policy))
        assert again.shadow(Shadow(0, (0, 1), dtype), case) == 0.5


def test_what_does_not_join() -> None:
    one, formula = of_dtype("fp8"), synthetic_landscape(2, 2, 2, seed=1, psnr_db={"mxfp4": 30.0})
    for other in (one, of_dtype("mxfp4", prompts=3), formula):
        with pytest.raises(DocumentError, match="of different dtypes"):
            Landscape.joined([one, other])
