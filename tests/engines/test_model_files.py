"""A model's folder before it is loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import EngineError, NotFoundError, UsageError
from fa_tuner.engines import model_files
from fa_tuner.engines.model_files import local_path, locate, read_index, weights_digest

INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline", "_diffusers_version": "0.40.0", "boundary_ratio": 0.875, "expand_timesteps": False,
    "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"], "tokenizer": ["transformers", "T5TokenizerFast"],
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks whole; nothing in it can be loaded."""
    folder = tmp_path / "model"
    for part in ("transformer", "scheduler", "tokenizer"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "transformer" / "config.json").write_text("{}")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "tokenizer" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HF_HUB_OFFLINE=1`, which the hub's client reads when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- where it is ----------------------------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(model), None) == model
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate("~/model", None) == model


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./no-such-folder", "no-such-folder", "a/b/c", "x" * 10_000, "~nobody-of-that-name/model",
     "nul\0", "two words/model", "../" * 3, "<script>", "é/model", "a/" + "b" * 97],
    ids=lambda name: ascii(name[:20]),
)  # fmt: skip
def test_what_is_neither_here_nor_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("../"):
        name += "no-such-folder"
    with pytest.raises(NotFoundError, match="does not exist; give a folder, or a hub id such as") as caught:
        locate(name, None)
    assert len(str(caught.value)) < 400


def test_a_file_is_no_model(model: Path) -> None:
    with pytest.raises(UsageError, match=r"is a file; give the folder of a diffusers pipeline"):
        locate(str(model / "model_index.json"), None)


def test_the_hub_cannot_be_reached(offline: None) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"the hub cannot be reached .* download it first and give its folder"):
        locate("fa-tune-tests/no-such-model", None)
    assert time.monotonic() - started < 20


def test_an_unreachable_hub_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("name resolution failed at https://token@hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(EngineError, match="ConnectionError") as caught:
        locate("a/b", None)
    assert "token" not in str(caught.value)


def test_it_is_not_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    def not_there(*_: Any, **__: Any) -> str:
        raise RevisionNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_there)
    with pytest.raises(NotFoundError, match=r"model a/b \(revision v9\) is no folder here and not on the hub"):
        locate("a/b", "v9")


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "a/b.git"])
def test_ids_that_the_hubs_client_refuses(name: str, offline: None) -> None:
    with pytest.raises(NotFoundError, match="not on the hub"):
        locate(name, None)


def test_the_hub_is_asked_for_that_revision_without_pickles(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(model)
    )
    assert locate("a/b", "v9") == model
    ((name, options),) = asked
    assert (name, options["revision"]) == ("a/b", "v9") and "*.bin" in options["ignore_patterns"]


def test_a_local_path_is_one_that_exists(tmp_path: Path) -> None:
    assert local_path(str(tmp_path)) == tmp_path
    for name in ("no/such", "x" * 5000, "~nobody-of-that-name/x", "\0"):
        assert local_path(name) is None


# --- whether it is whole --------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_index(folder)
    return str(caught.value)


def test_a_whole_model(model: Path) -> None:
    assert read_index(model) == INDEX


def test_no_index(model: Path) -> None:
    (model / "model_index.json").unlink()
    said = refusal(model)
    assert "is not a diffusers model: it has no model_index.json" in said and "-Diffusers" in said


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"{'_class_name': 1}"],
    ids=["empty", "cut", "not UTF-8", "deep", "python"],
)  # fmt: skip
def test_an_index_that_is_no_json(model: Path, content: bytes) -> None:
    (model / "model_index.json").write_bytes(content)
    assert "model_index.json cannot be read as JSON" in refusal(model)


def test_an_index_that_is_a_folder(model: Path) -> None:
    (model / "model_index.json").unlink()
    (model / "model_index.json").mkdir()
    assert "cannot be read" in refusal(model)


@pytest.mark.parametrize("document", [[], "WanPipeline", {}, {"_class_name": None}, {"_class_name": ["WanPipeline"]}])
def test_an_index_without_a_class(model: Path, document: Any) -> None:
    (model / "model_index.json").write_text(json.dumps(document))
    assert "names no pipeline class" in refusal(model)


@pytest.mark.parametrize("part", ["transformer", "scheduler", "tokenizer"])
def test_a_part_is_missing(model: Path, part: str) -> None:
    (model / part).rename(model / "elsewhere")
    assert f"lacks its part {part}/, which model_index.json names" in refusal(model)


def test_a_part_that_the_index_leaves_out_may_be_missing(model: Path) -> None:
    assert not (model / "transformer_2").exists()
    read_index(model)


def test_the_weights_are_missing(model: Path) -> None:
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    said = refusal(model)
    assert "transformer has a configuration but no weights" in said
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    read_index(model)


# --- which weights --------------------------------------------------------------------------------------------------


def test_the_digest_is_stable_and_goes_by_content(model: Path) -> None:
    digest = weights_digest(model)
    assert len(digest) == 16 and int(digest, 16) >= 0
    moved = model.rename(model.with_name("renamed"))
    assert weights_digest(moved) == digest
    (moved / "README.md").write_text("no part of the model")
    assert weights_digest(moved) == digest


@pytest.mark.parametrize(
    "name",
    ["transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "model_index.json",
     "transformer/config.json"],
)  # fmt: skip
def test_it_changes_with_any_part(model: Path, name: str) -> None:
    before = weights_digest(model)
    content = bytearray((model / name).read_bytes())
    content[-1] ^= 1
    (model / name).write_bytes(content)
    assert weights_digest(model) != before


def test_it_changes_with_pickled_weights(model: Path) -> None:
    """They are loaded where there are no others."""
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"one")
    before = weights_digest(model)
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"two")
    assert weights_digest(model) != before


def test_it_changes_with_a_file_that_moves(model: Path) -> None:
    before = weights_digest(model)
    (model / "transformer").rename(model / "transformer_2")
    assert weights_digest(model) != before


def test_large_files_go_by_their_size_and_samples(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_HASH_WHOLE_BELOW", 1000)
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"

    def digest_of(content: bytes) -> str:
        path.write_bytes(content)
        return weights_digest(model)

    whole = bytes(5 * 2**20)
    assert digest_of(whole) != digest_of(whole + b"\0")
    assert digest_of(whole) != digest_of(b"\1" + whole[1:])
    assert digest_of(whole) != digest_of(whole[:-1] + b"\1")
    large = bytes(40 * 2**20)
    changed = bytearray(large)
    changed[300_000] = 1  # between the first two samples: the known limit, as documented
    assert digest_of(large) == digest_of(bytes(changed))


# --- a real one -----------------------------------------------------------------------------------------------------


def test_the_tiny_model_is_whole(tiny_wan: Path) -> None:
    assert read_index(tiny_wan)["_class_name"] == "WanPipeline"
    assert weights_digest(tiny_wan) == weights_digest(tiny_wan)
