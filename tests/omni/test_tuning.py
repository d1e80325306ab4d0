"""A user's whole way, by the installed command: run, recommend, export, verify, and what a verification refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from tests.support.command import Result
from tests.support.installed import Installed

from .conftest import DEMO, DEMO_RUN, OPTIONS, SIZE, WORKLOAD

pytestmark = pytest.mark.timeout(400)
TRIALS, MIN_PSNR = 14, 44
# the own policy quantizes two cells of 48, so that something qualifies whatever the sampler finds
RUN = (*DEMO_RUN, "--trials", str(TRIALS), "--min-psnr", str(MIN_PSNR), "--try", "2-5/1-7", "--study", "s")
VERIFY = ("verify", "--model", DEMO, *SIZE, "--prompt", WORKLOAD.holdout[0])


@pytest.fixture(scope="module")
def tuned(installed: Installed) -> Result:
    return installed(*RUN, "--json").succeeded()


@pytest.fixture(scope="module")
def exported(installed: Installed, tuned: Result) -> Path:
    file = installed.folder / "deploy.yaml"
    done = installed("export", "s", "--validate", "--vllm-omni-version", "0.30.0", "-o", file).succeeded()
    assert "validated by vllm-omni 0.30.0: steps {" in done.err and f"written: {file}" in done.err
    return file


def assert_nothing_is_called_measured(document: Any) -> None:
    """Of every figure in it: the source of a latency, the operator, the device."""
    text = json.dumps(document)
    assert re.findall(r'"(?:source|latency_source)": "(\w+)"', text), "no latency in it"
    assert set(re.findall(r'"(?:source|latency_source)": "(\w+)"', text)) == {"projected"}
    assert '"latency": "measured"' not in text
    assert set(re.findall(r'"operator": "(\w+)"', text)) == {"emulated"}
    assert set(re.findall(r'"device": "(emulated npu)?[^"]*"', text)) == {"emulated npu"}


def test_a_study(installed: Installed, tuned: Result) -> None:
    found = tuned.document
    assert (found["state"], found["reason"], found["evaluated"]) == ("finished", "budget", TRIALS)
    assert found["environment"]["engine"] == "vllm-omni" and found["environment"]["pipeline"] == "Wan22Pipeline"
    assert found["environment"]["versions"]["vllm-omni"] == "0.30.0"
    assert found["noise_floor_db"] == 100, "two native runs are equal, bit by bit"
    shown = installed("show", "s", "--json").succeeded().document
    rows = shown["evaluations"]
    assert [row["number"] for row in rows] == list(range(TRIALS + 1)) and not any(row["failed"] for row in rows)
    assert len({(row["policy"]["skip_steps"], row["policy"]["skip_layers"]) for row in rows[1:]}) == TRIALS
    assert {row["origin"] for row in rows} >= {"baseline", "anchor", "try", "predicted"}
    for row in rows:
        share, calls = row["policy"]["share_quantized"], 2 * 2 * 6 * 8  # prompts, guidance branches, steps, layers
        runs = 2 if row["policy"]["native"] else 1
        assert row["coverage"] == {
            "proven": True, "quantized_calls": round(share * calls), "native_calls": round((1 - share) * calls * runs),
        }  # fmt: skip
        assert row["latency"]["gain"] == 0 or share > 0
    assert_nothing_is_called_measured(shown)
    assert_nothing_is_called_measured(found)


def test_the_front(tuned: Result) -> None:
    found = tuned.document
    front = [(row["latency"]["relative"], row["psnr_db"]) for row in found["front"]]
    assert len(front) > 2 and front == sorted(front), "fastest first, and each slower one is the better picture"
    assert [quality for _, quality in front] == sorted(quality for _, quality in front)
    chosen = found["recommended"]
    assert chosen["psnr_db"] >= MIN_PSNR and chosen["latency"]["gain"] > 0 and not chosen["policy"]["native"]
    (held_out,) = chosen["holdout_prompts"]
    assert held_out["prompt"] == WORKLOAD.holdout[0] and held_out["metrics"]["psnr_db"] >= MIN_PSNR


def test_what_was_said_meanwhile(installed: Installed, tuned: Result) -> None:
    assert "policies are switched on the loaded engine" in tuned.err
    assert "no NPU: latency is projected, and every result is marked emulated" in tuned.err
    assert "equal to those of the full run, bit by bit: shared steps are not computed again" in tuned.err
    assert "22 shadow probes beside the baseline of each prompt" in tuned.err
    assert re.search(r"held-out prompts under fp8, skip steps .*: pass", tuned.err)
    table = installed("pareto", "s").succeeded().out
    assert "gain (projected)" in table and "operator emulated" in table and "(measured)" not in table
    assert "latency    projected from profile" in table
    # two native runs, and one forward of six for each shadow probe
    assert "generations of every prompt, 5.7 of them the baseline's" in installed("show", "s").succeeded().out


def test_recommend(installed: Installed, tuned: Result) -> None:
    found = installed("recommend", "--model", DEMO, "--json").succeeded().document
    assert found["policy"] == tuned.document["recommended"]["policy"] and found["holdout"] == "passed"
    assert_nothing_is_called_measured(found)
    assert any("nothing was timed on that device" in note for note in found["notes"])
    assert any("operator was emulated" in note for note in found["notes"])
    installed("recommend", "--model", DEMO, "--min-psnr", "99").refused(6, "meets psnr_db>=99", "the nearest is")


def test_export(installed: Installed, tuned: Result, exported: Path) -> None:
    text = exported.read_text()
    assert "operator emulated" in text and "device emulated npu on cpu" in text
    assert "This latency is projected, not measured: it did not run on an NPU." in text
    assert "measured" not in text.replace("projected, not measured", "")
    assert text.partition("\nstages:")[2].count("diffusion_kv_cache_") == 3
    document = installed("export", "s", "--validate", "--json").succeeded().document
    assert document["validated_by"] == "vllm-omni 0.30.0"
    assert_nothing_is_called_measured(document)
    installed("export", "s", "--validate", "--vllm-omni-version", "0.28.0").refused(2, "0.30.0", "0.28")


def test_verify(installed: Installed, tuned: Result, exported: Path) -> None:
    done = installed(
        "verify", "--deploy-config", exported, "--study", "s", "--engine-arg", "dtype=float32", "--json"
    ).succeeded()  # fmt: skip
    found, wanted = done.document, tuned.document["recommended"]
    assert found["passed"] and found["misses"] == [] and found["policy"] == wanted["policy"]
    assert found["requirement"] == f"psnr_db>={MIN_PSNR} (worst prompt)"
    (case,) = found["measurement"]["prompts"]
    assert case["prompt"] == WORKLOAD.holdout[0], "a prompt that the search has not seen"
    assert found["measurement"]["coverage"]["proven"] and found["measurement"]["coverage"]["quantized_calls"] > 0
    # the same policy, loaded instead of switched to, on the same prompt
    (held_out,) = wanted["holdout_prompts"]
    assert case["metrics"] == held_out["metrics"]
    assert_nothing_is_called_measured(found)


def test_verify_says_what_is_missed(installed: Installed, exported: Path) -> None:
    done = installed(*VERIFY, "--deploy-config", exported, "--min-psnr", "99")
    done.refused(6, "does not pass: psnr_db>=99 is missed by ", str(exported))
    assert "not passed: psnr_db>=99 is missed by" in done.out
    assert "projected from" in done.out and "operator emulated" in done.out and "measured" not in done.out


def test_verify_refuses_a_prompt_of_the_search(installed: Installed, exported: Path) -> None:
    installed(
        "verify", "--deploy-config", exported, "--study", "s", "--prompt", WORKLOAD.prompts[0]
    ).refused(2, "was searched on in study s")  # fmt: skip


KEYS = 'diffusion_kv_cache_dtype: fp8, diffusion_kv_cache_skip_steps: "0"'
REFUSED = {
    "at the top level": ("\n".join(KEYS.split(", ")) + "\nstages: [{stage_id: 0}]\n", 7, "at the top level"),
    "no stage to match": (
        f"stages: [{{stage_id: 0}}]\nplatforms: {{npu: {{stages: [{{stage_id: 1, {KEYS}}}]}}}}\n",
        7,
        "no stage matches",
    ),
    "a misspelt key": (
        f"stages: [{{stage_id: 0, {KEYS.replace('skip_steps', 'skip_step')}}}]\n", 2, "'diffusion_kv_cache_skip_step'",
    ),
    "more steps": (f"stages: [{{stage_id: 0, {KEYS.replace('0', '0,39')}}}]\n", 2, "skips step 39"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_verify_refuses(installed: Installed, tmp_path: Path, what: str) -> None:
    text, code, said = REFUSED[what]
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    done = installed(*VERIFY, "--deploy-config", file, "--min-psnr", "30")
    done.refused(code, said)
    assert done.out == "" and (str(file) in done.err or what == "a misspelt key")


def test_the_same_command_again_does_nothing_new(installed: Installed, tuned: Result) -> None:
    before = installed.evaluations("s")
    again = installed(*RUN, "--json").succeeded()
    assert installed.evaluations("s") == before
    assert "baseline taken over" in again.err and not re.search(r"^ *\d+ +[\d.]+ dB, gain", again.err, re.MULTILINE)
    assert again.document["front"] == tuned.document["front"]
    assert again.document["recommended"] == tuned.document["recommended"]


def test_a_dry_run_stores_nothing(installed: Installed, tuned: Result) -> None:
    before = installed("studies", "--json").document
    plan = installed(*RUN, "--dry-run", "--json", "--study", "dry").succeeded().document
    assert plan["latency"] == "projected" and plan["environment"]["operator"] == "emulated"
    assert plan["policies"] == TRIALS and plan["generations"]["baseline, twice"] == 4
    assert plan["generation_equivalents"]["shadow probes"] == pytest.approx(22 / 6)
    assert plan["generations"]["total"] == 4 + 2 * TRIALS + 2 and 0 < plan["seconds_a_generation"] < 60
    assert installed("studies", "--json").document == before


def test_as_deployed_gives_the_frames_of_the_policy_switched_to(engine: VllmOmniEngine, exported: Path) -> None:
    deployed = VllmOmniEngine.open(WORKLOAD, {**OPTIONS, "as_deployed": True, "deploy_config": str(exported)})
    try:
        policy, settings = deployed.deployed, dict(deployed.describe().settings)
        assert settings.pop("deploy_config_sha256") and settings == engine.describe().settings
        assert not policy.is_native and f'diffusion_kv_cache_skip_steps: "{policy.skip_steps}"' in exported.read_text()
        native = engine.generate(SkipPolicy(), WORKLOAD.cases[0]).frames
        for case in WORKLOAD.cases:
            loaded, switched = deployed.generate(policy, case), engine.generate(policy, case)
            for generation in (loaded, switched):
                prove(engine.describe(), policy, generation)
            assert np.array_equal(loaded.frames, switched.frames) and not np.array_equal(loaded.frames, native)
    finally:
        deployed.close()
