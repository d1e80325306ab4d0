"""Which policy is in force in the engine vllm-omni: put there, left there by a deploy file, and read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fa_tuner.domain.errors import EngineError, NotQuantizedError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from tests.support.omni_process import Omni, died, found, policy, run

NATIVE, EVERYTHING = SkipPolicy(), SkipPolicy("fp8")
Open = Callable[..., VllmOmniEngine]


# --- switching ------------------------------------------------------------------------------------------------------


def test_it_switches_only_when_another_policy_is_in_force(omni: Omni, opened: Open) -> None:
    engine = opened()
    for asked in (NATIVE, EVERYTHING, EVERYTHING, policy("0/"), policy("0/", "mxfp8"), NATIVE, NATIVE):
        prove(engine.describe(), asked, run(engine, asked))
    assert [request["policy"] for request in omni.generations] == [
        None, ("fp8", "", ""), None, ("fp8", "0", ""), ("mxfp8", "0", ""), ("native", "", ""), None,
    ]  # fmt: skip
    assert len(omni.processes) == 1
    assert "policies are switched on the loaded engine" in engine.describe().remarks


@pytest.mark.parametrize("option", ["restart", "auto"])
def test_restarting_it_never_switches(omni: Omni, opened: Open, option: str) -> None:
    """Asked to, or where the version leaves no other way."""
    omni.found = found(switchable=option == "restart")
    engine = opened({"policy_switch": option})
    for asked in (NATIVE, EVERYTHING, EVERYTHING, policy("0/1"), NATIVE):
        for prompt in (0, 1):
            prove(engine.describe(), asked, run(engine, asked, prompt))
        assert omni.running == omni.processes[-1:], "the one before is closed first: there is one device"
    assert [request["policy"] for request in omni.generations] == [None] * 10
    names = ("diffusion_kv_cache_dtype", "diffusion_kv_cache_skip_steps", "diffusion_kv_cache_skip_layers")
    started = [tuple(p.requests[0]["options"].get(name) for name in names) for p in omni.processes]
    assert started == [("auto", None, None), ("fp8", "", ""), ("fp8", "0", "1"), ("auto", None, None)]
    assert "each policy restarts the engine" in engine.describe().remarks


def test_restarting_it_does_not_switch_even_where_the_start_did_not_take(omni: Omni, opened: Open) -> None:
    """What was loaded is read back again with the run, and refused there."""
    engine = opened({"policy_switch": "restart"})
    omni.found["policies"] = [["native", [], []]]
    omni.alter = lambda answer: answer["begun"][0].update(policies=[["native", [], []]])
    with pytest.raises(NotQuantizedError, match="was asked for, and the attention layers of rank 0 hold"):
        run(engine, EVERYTHING)
    assert omni.generations[0]["policy"] is None


def test_runtime_is_obeyed_where_auto_would_restart(omni: Omni, opened: Open) -> None:
    omni.found = found(switchable=False)
    run(opened({"policy_switch": "runtime"}), EVERYTHING)
    assert len(omni.processes) == 1 and omni.generations[0]["policy"] == ("fp8", "", "")


# --- reading back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    "held",
    [
        [["native", [], []]],
        [["fp8", [0], []]],
        [["fp8", [0, 1], [1]]],
        [["mxfp8", [0, 1], []]],
        [["fp8", [0, 1], []], ["native", [], []]],
        [],
    ],
    ids=str,
)
def test_another_policy_in_force_on_any_rank(omni: Omni, opened: Open, rank: int, held: list[Any]) -> None:
    omni.found = found(world_size=3)
    omni.alter = lambda answer: answer["begun"][rank].update(policies=held)
    with pytest.raises(NotQuantizedError) as caught:
        run(opened(), policy("0,1/"))
    said = str(caught.value)
    assert 'policy fp8, skip steps "0,1", layers "" was asked for' in said
    assert f"the attention layers of rank {rank} hold" in said and "the policy did not take effect" in said
    for dtype, steps, layers in held:
        assert str((dtype, tuple(steps), tuple(layers))) in said


def test_quantized_layers_under_native(omni: Omni, opened: Open) -> None:
    omni.alter = lambda answer: answer["begun"][0].update(policies=[["fp8", [0], []], ["native", [], []]])
    with pytest.raises(NotQuantizedError, match="policy native was asked for"):
        run(opened(), NATIVE)


def test_native_layers_may_hold_selectors(omni: Omni, opened: Open) -> None:
    """Without a dtype they mean nothing; a deploy file may leave them there."""
    omni.alter = lambda answer: answer["begun"][0].update(policies=[["native", [], []], ["native", [0], [1]]])
    run(opened(), NATIVE)


def test_indices_that_this_workload_has_not_make_no_other_policy(omni: Omni, opened: Open) -> None:
    """Layer 1 opted out and has no cell; a deploy file may name it."""
    omni.found, omni.deployed = found(layers=[0, 2]), ("fp8", (0,), (1, 2))
    engine = opened({"policy_switch": "runtime"})
    omni.alter = lambda answer: answer["begun"][0].update(policies=[["fp8", [0], [1, 2]]])
    run(engine, SkipPolicy("fp8", SkipSelector((0,)), SkipSelector((1, 2))))
    omni.alter = lambda answer: answer["begun"][0].update(policies=[["fp8", [0], [0, 1]]])
    with pytest.raises(NotQuantizedError):
        run(engine, SkipPolicy("fp8", SkipSelector((0,)), SkipSelector((1, 2))))


# --- a deploy file --------------------------------------------------------------------------------------------------


def test_the_deployed_policy_is_left_to_the_file_and_read_back(omni: Omni, opened: Open, deploy: str) -> None:
    omni.deployed = ("fp8", (0, 2), (1,))
    engine = opened({"deploy_config": deploy, "as_deployed": True})
    options = omni.requests[0]["options"]
    assert options["deploy_config"] == deploy and not any("kv_cache" in name for name in options)
    assert "as_deployed" not in options
    assert engine.deployed == policy("0,2/1")
    prove(engine.describe(), engine.deployed, run(engine, engine.deployed))
    run(engine, NATIVE)
    assert [request["policy"] for request in omni.generations] == [None, ("native", "", "")]


def test_what_the_workload_sets_goes_with_each_request_to_a_deployed_engine(
    omni: Omni, opened: Open, deploy: str
) -> None:
    """The engine is started as the file says; a request may bring its own."""
    omni.deployed = ("fp8", (), ())
    options = {"deploy_config": deploy, "as_deployed": True}
    with pytest.raises(UsageError, match=r"boundary_ratio 0\.5 was asked for, .* configured with 0\.875"):
        opened(options, flow_shift=7.0, boundary_ratio=0.5)
    omni.found = found(config={"boundary_ratio": None})
    engine = opened(options, flow_shift=7.0, boundary_ratio=0.5)
    run(engine, EVERYTHING)
    assert not {"flow_shift", "boundary_ratio"} & omni.requests[-2]["options"].keys()
    sampling = omni.generations[0]["sampling"]
    assert (sampling["extra_args"], sampling["boundary_ratio"]) == ({"flow_shift": 7.0}, 0.5)
    run(opened(options), EVERYTHING)
    assert not {"extra_args", "boundary_ratio"} & omni.generations[1]["sampling"].keys()


def test_tuning_from_a_deploy_file_begins_native(omni: Omni, opened: Open, deploy: str) -> None:
    omni.deployed = ("fp8", (0,), ())
    engine = opened({"deploy_config": deploy})
    assert engine.deployed.is_native and omni.requests[0]["options"]["diffusion_kv_cache_dtype"] == "auto"


def test_a_deployed_policy_that_quantizes_nothing_here(omni: Omni, opened: Open, deploy: str) -> None:
    """For whoever verifies it to refuse: it is not changed on the way."""
    omni.deployed = ("fp8", (0, 1, 2, 3, 4), ())
    engine = opened({"deploy_config": deploy, "as_deployed": True})
    assert engine.deployed.dtype == "fp8" and len(engine.deployed.skip_steps) == 5


def test_layers_loaded_with_different_policies(omni: Omni, opened: Open, deploy: str) -> None:
    omni.found["policies"] = [["fp8", [], []], ["native", [], []]]
    with pytest.raises(NotQuantizedError, match=r"were loaded with different policies: \[\['fp8'"):
        opened({"deploy_config": deploy, "as_deployed": True})
    assert not omni.running


def test_a_policy_that_is_gone_after_a_failure_is_put_in_force_again(omni: Omni, opened: Open, deploy: str) -> None:
    omni.deployed = ("fp8", (0,), ())
    engine = opened({"deploy_config": deploy, "as_deployed": True})
    omni.trouble = [died()]
    with pytest.raises(EngineError):
        run(engine, engine.deployed)
    prove(engine.describe(), engine.deployed, run(engine, engine.deployed))
