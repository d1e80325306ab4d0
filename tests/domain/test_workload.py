from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import DocumentError, UsageError
from fa_tuner.domain.workload import MAX_PROMPT_CHARACTERS, Case, Workload, fingerprint_of, split_holdout

WORKLOAD = Workload(
    model="some/model", revision="abc", prompts=("a cat", "a dog"), holdout=("a bird",), seeds=(0, 7), height=480,
    width=832, frames=81, steps=40, guidance=4.0, guidance_2=3.0, negative_prompt="blurry", flow_shift=12.0,
    boundary_ratio=0.875, options={"device": "cpu"},
)  # fmt: skip

PROMPTS = st.text(min_size=1).filter(lambda prompt: prompt.strip() and "\0" not in prompt)


def test_the_document_is_plain_json_and_round_trips() -> None:
    document = json.loads(json.dumps(WORKLOAD.document()))
    assert Workload.from_document(document) == WORKLOAD
    assert Workload.from_document(document).fingerprint == WORKLOAD.fingerprint


@given(
    prompts=st.lists(
        st.text(min_size=1).filter(lambda p: p.strip() and "\0" not in p), min_size=1, max_size=4, unique=True
    ),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
    guidance=st.floats(0, 100),
)
def test_any_workload_round_trips(prompts: list[str], seeds: list[int], guidance: float) -> None:
    workload = replace(WORKLOAD, prompts=tuple(prompts), seeds=tuple(seeds), guidance=guidance, holdout=())
    assert Workload.from_document(json.loads(json.dumps(workload.document()))) == workload


def test_an_older_document_without_the_optional_keys_is_read() -> None:
    needed = {name: WORKLOAD.document()[name] for name in ("model", "prompts", "height", "width", "frames", "steps")}
    assert Workload.from_document(needed).seeds == (0,)


def test_the_fingerprint_is_stable() -> None:
    """Stored fingerprints must stay readable: a change here makes every stored study another one."""
    assert WORKLOAD.fingerprint == "4e6f1a4f598d8412"
    assert fingerprint_of({"b": 1, "a": [1.5, None, "\u00e9"]}) == fingerprint_of({"a": [1.5, None, "\u00e9"], "b": 1})


def test_the_fingerprint_sees_every_field() -> None:
    other: dict[str, Any] = dict(
        model="m", prompts=("x",), height=16, width=16, frames=1, steps=1, revision=None, holdout=(), seeds=(1,),
        guidance=1.0, guidance_2=None, negative_prompt="", flow_shift=None, boundary_ratio=None, options={},
    )  # fmt: skip
    assert set(other) | {"task", "image"} == {known.name for known in fields(Workload)}
    seen = {replace(WORKLOAD, **{name: value}).fingerprint for name, value in other.items()}
    seen.add(replace(WORKLOAD, task="i2v", image="0" * 64).fingerprint)
    assert len(seen | {WORKLOAD.fingerprint}) == len(other) + 2


def test_whole_and_real_numbers_are_the_same_workload() -> None:
    assert replace(WORKLOAD, guidance=4, flow_shift=12).fingerprint == WORKLOAD.fingerprint


def test_cases_are_prompts_by_seeds() -> None:
    assert WORKLOAD.cases == (Case("a cat", 0), Case("a cat", 7), Case("a dog", 0), Case("a dog", 7))
    assert WORKLOAD.holdout_cases == (Case("a bird", 0), Case("a bird", 7))


@pytest.mark.parametrize(("guidance", "guided"), [(0.0, False), (1.0, False), (1.01, True), (5.0, True)])
def test_guidance_of_one_or_less_is_none(guidance: float, guided: bool) -> None:
    assert replace(WORKLOAD, guidance=guidance).guided is guided


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "needs a model"),
        ({"prompts": ()}, "at least one prompt"),
        ({"prompts": (" ",)}, "is empty"),
        ({"prompts": ("a\0b",)}, "NUL"),
        ({"prompts": ("a" * (MAX_PROMPT_CHARACTERS + 1),)}, "exceeds"),
        ({"prompts": ("a", "a")}, "twice"),
        ({"holdout": ("b", "b")}, "twice"),
        ({"holdout": ("a cat",)}, "both searched on and held out"),
        ({"height": 0}, "height is 0"),
        ({"height": 32.5}, "whole number"),
        ({"width": 100_000}, "width is 100000"),
        ({"frames": 0}, "frames is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"steps": True}, "whole number"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance_2": float("inf")}, "guidance_2 is inf"),
        ({"flow_shift": float("nan")}, "flow_shift is nan"),
        ({"boundary_ratio": 1.5}, "boundary_ratio is 1.5"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (2**63,)}, "seeds"),
        ({"seeds": (0.5,)}, "seeds"),
        ({"task": "i2v"}, "--image"),
        ({"image": "0" * 64}, "--image"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(WORKLOAD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zzz": 1}, "unknown key 'zzz'"),
        ({"model": None}, "workload.model"),
        ({"model": 5}, "workload.model"),
        ({"prompts": "abc"}, "workload.prompts"),
        ({"prompts": [1]}, "workload.prompts"),
        ({"seeds": ["0"]}, "workload.seeds"),
        ({"seeds": [True]}, "workload.seeds"),
        ({"height": "480"}, "workload.height"),
        ({"steps": None}, "workload.steps"),
        ({"guidance": None}, "workload.guidance"),
        ({"guidance": "5"}, "workload.guidance"),
        ({"revision": 7}, "workload.revision"),
        ({"options": []}, "workload.options"),
    ],
)
def test_a_bad_document_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Workload.from_document({**WORKLOAD.document(), **change})


@pytest.mark.parametrize("name", ["model", "prompts", "height", "width", "frames", "steps"])
def test_a_document_without_a_needed_key_is_refused(name: str) -> None:
    document = WORKLOAD.document()
    del document[name]
    with pytest.raises(DocumentError, match=name):
        Workload.from_document(document)


def test_nan_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint_of({"a": float("nan")})


@pytest.mark.parametrize(
    ("prompts", "given", "searched", "held"),
    [
        ("a", "", "a", ""),
        ("ab", "", "ab", ""),
        ("abc", "", "ab", "c"),
        ("abcdef", "", "abcd", "ef"),
        ("abc", "x", "abc", "x"),
    ],
)
def test_split_holdout(prompts: str, given: str, searched: str, held: str) -> None:
    assert split_holdout(tuple(prompts), tuple(given)) == (tuple(searched), tuple(held))
