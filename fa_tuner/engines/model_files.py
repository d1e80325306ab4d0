"""A diffusers model before it is loaded: does it exist, is it whole, which pipeline is it, which weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import EngineError, NotFoundError, UsageError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HASH_WHOLE_BELOW = 64 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 2**18
_INDEX = "model_index.json"


def locate(model: str, revision: str | None, only: Sequence[str] | None = None) -> Path:
    """The local folder of a path or of a Hugging Face id (fetched, or taken from the hub's cache).

    `only`: patterns of the files to fetch, instead of all that a pipeline is loaded from.

    Raises:
        NotFoundError: neither a folder here nor a model there.
        EngineError: the hub cannot be reached and the model is not in its cache.
    """
    path = local_path(model)
    if path is not None and path.is_dir():
        return path
    if path is not None:
        raise UsageError(f"model {model} is a file; give the folder of a diffusers pipeline (it holds {_INDEX})")
    if not _HUB_ID.fullmatch(model):
        raise NotFoundError(
            f"model {model[:200]} does not exist; give a folder, or a hub id such as Wan-AI/Wan2.2-T2V-A14B-Diffusers"
        )
    return _fetch(model, revision, only)


def local_path(model: str) -> Path | None:
    """The path here that `model` names, None where it names none."""
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name too long for a path, or the home of a user that there is not
        return None


def _fetch(model: str, revision: str | None, only: Sequence[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        chosen = list(only) if only else None
        ignored = ["*.bin", "*.msgpack", "*.onnx"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=chosen, ignore_patterns=ignored))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotFoundError(
            f"model {model} (revision {revision or 'main'}) is no folder here and not on the hub"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise EngineError(
            f"model {model} is no folder here and the hub cannot be reached ({type(error).__name__}); "
            "check the path, or download it first and give its folder"
        ) from error


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`, after a look that every component it names is there.

    Raises:
        UsageError: no diffusers folder, or it lacks a part.
    """
    index = parse_index(folder)
    for name, part in index.items():
        if isinstance(part, list) and len(part) == 2 and part[0] is not None:
            _check_part(folder, name)
    return index


def parse_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` alone; what it names may be missing.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not a diffusers model: it has no {_INDEX}; original Wan checkpoints must be converted, "
            "or take the repository whose name ends in -Diffusers"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / _INDEX} cannot be read as JSON: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UsageError(f"{folder / _INDEX} names no pipeline class")
    return index


def _check_part(folder: Path, name: str) -> None:
    part = folder / name
    if not part.is_dir():
        raise UsageError(f"{folder} lacks its part {name}/, which {_INDEX} names; copy or download the whole model")
    wants_weights = (part / "config.json").is_file() and not name.startswith(("scheduler", "tokenizer"))
    if wants_weights and not any(part.glob("*.safetensors")) and not any(part.glob("*.bin")):
        raise UsageError(f"{part} has a configuration but no weights (*.safetensors); copy or download the whole model")


def weights_digest(folder: Path) -> str:
    """16 hexadecimal digits that change when a configuration or weight file does.

    Small files are hashed whole, of large ones the size and 64 samples of 256 KiB from first to last, so that a
    fine-tune, which changes every tensor, does not go unseen.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".bin"}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}:".encode())
        with path.open("rb") as file:
            if size < _HASH_WHOLE_BELOW:
                digest.update(file.read())
                continue
            for part in range(_SAMPLES):
                file.seek(part * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def file_digest(path: str) -> str:
    """16 hexadecimal digits of a file's content, or of a folder's configuration and weight files."""
    found = Path(path)
    if found.is_dir():
        return weights_digest(found)
    with found.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
