"""Frames on disk: whole or absent, within the quota, under names of our own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import fa_tuner
from fa_tuner.domain.errors import StoreError
from fa_tuner.store.artifacts import Artifacts

GB = 2**30
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)


@pytest.fixture(params=["folder", "memory"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Artifacts]:
    root = str(tmp_path / "new" / "root") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    opened = Artifacts(root, GB)
    yield opened
    for study in ("s", "t"):
        opened.delete(study)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_frames_come_back_equal(artifacts: Artifacts) -> None:
    assert artifacts.frames("s", "native", 0) is None
    assert artifacts.used_bytes() == 0
    assert artifacts.put_frames("s", "native", 0, FRAMES)
    assert artifacts.put_frames("s", "native", 1, FRAMES[:1, ::2])
    got = artifacts.frames("s", "native", 0)
    assert got is not None and got.dtype == np.uint8 and np.array_equal(got, FRAMES)
    assert np.array_equal(artifacts.frames("s", "native", 1), FRAMES[:1, ::2])  # type: ignore[arg-type]
    assert artifacts.frames("t", "native", 0) is None
    assert artifacts.used_bytes() > FRAMES.nbytes // 2


def test_put_replaces(artifacts: Artifacts) -> None:
    for frames in (FRAMES, FRAMES[::-1]):
        assert artifacts.put_frames("s", "native", 0, frames)
    assert np.array_equal(artifacts.frames("s", "native", 0), FRAMES[::-1])  # type: ignore[arg-type]


def test_keep_spares_the_named_policies_and_the_native_one(artifacts: Artifacts) -> None:
    artifacts.keep("s", [])
    for key in ("native", "fp8:/0", "fp8:/1"):
        assert artifacts.put_frames("s", key, 0, FRAMES)
    artifacts.put_frames("t", "fp8:/0", 0, FRAMES)
    artifacts.keep("s", ["fp8:/1", "fp8:/none"])
    kept = {key for key in ("native", "fp8:/0", "fp8:/1") if artifacts.frames("s", key, 0) is not None}
    assert kept == {"native", "fp8:/1"}
    assert artifacts.frames("t", "fp8:/0", 0) is not None
    artifacts.delete("s")
    artifacts.delete("s")
    assert artifacts.frames("s", "native", 0) is None
    assert artifacts.frames("t", "fp8:/0", 0) is not None


def test_beyond_the_quota_nothing_is_written(tmp_path: Path) -> None:
    generous = Artifacts(str(tmp_path), GB)
    generous.put_frames("s", "native", 0, FRAMES)
    used = generous.used_bytes()
    exact = Artifacts(str(tmp_path), used)
    assert not exact.put_frames("s", "fp8:/", 0, FRAMES)
    assert not exact.put_frames("s", "native", 0, np.concatenate([FRAMES, FRAMES[::-1]]))
    assert exact.put_frames("s", "native", 0, FRAMES)  # it replaces its own bytes
    assert exact.used_bytes() == used and len(files(tmp_path)) == 1
    assert np.array_equal(exact.frames("s", "native", 0), FRAMES)  # type: ignore[arg-type]


def test_no_clients_text_becomes_a_path(tmp_path: Path) -> None:
    root = tmp_path / "root"
    artifacts = Artifacts(str(root), GB)
    for name in ("../../x", "%252e%252e", "/etc/passwd", "a\0b", "x" * 10_000, "\ud800", ""):
        assert artifacts.put_frames(name, name, 0, FRAMES)
        assert artifacts.frames(name, name, 0) is not None
    assert files(tmp_path) == files(root) and len(files(root)) == 7
    assert all(len(part) == 64 for path in files(root) for part in path.relative_to(root).parts[:-1])


def damaged(whole: bytes) -> dict[str, bytes]:
    pickled, floats, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(pickled, frames=np.array([object], dtype=object))
    np.savez_compressed(floats, frames=np.zeros((1, 2, 2, 3)))
    np.savez_compressed(other, pictures=FRAMES)
    middle = len(whole) // 2
    return {
        "empty": b"", "one byte": whole[:1], "half": whole[:middle], "but one": whole[:-1], "text": b"hello",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "npy": b"\x93NUMPY\x01\x00",
        "pickled": pickled.getvalue(), "floats": floats.getvalue(), "other": other.getvalue(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", damaged(b"ab"))
def test_a_damaged_file_is_absent_and_removed(tmp_path: Path, kind: str) -> None:
    artifacts = Artifacts(str(tmp_path), GB)
    artifacts.put_frames("s", "native", 0, FRAMES)
    [file] = files(tmp_path)
    file.write_bytes(damaged(file.read_bytes())[kind])
    assert artifacts.frames("s", "native", 0) is None
    assert files(tmp_path) == []
    assert artifacts.put_frames("s", "native", 0, FRAMES)


@pytest.mark.parametrize("step", ["pipe_file", "mv"])
def test_a_full_disk_costs_the_frames_and_nothing_else(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    artifacts.put_frames("s", "native", 0, FRAMES)
    used = artifacts.used_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts._files, step, full)
    assert not artifacts.put_frames("s", "native", 0, FRAMES[::-1])
    monkeypatch.undo()
    assert artifacts.used_bytes() == used
    assert np.array_equal(artifacts.frames("s", "native", 0), FRAMES)  # type: ignore[arg-type]


def test_a_killed_put_leaves_the_old_frames_and_is_tidied(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path), GB)
    artifacts.put_frames("s", "native", 0, FRAMES)
    code = (
        "import os, signal, sys, numpy as np\n"
        "from fa_tuner.store.artifacts import Artifacts\n"
        "artifacts = Artifacts(sys.argv[1], 2**30)\n"
        "artifacts._files.mv = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "artifacts.put_frames('s', 'native', 0, np.zeros((1, 8, 8, 3), np.uint8))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fa_tuner.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(files(tmp_path)) == 2
    assert np.array_equal(artifacts.frames("s", "native", 0), FRAMES)  # type: ignore[arg-type]
    artifacts.keep("s", [])
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("wrong", [FRAMES.astype(np.float32), FRAMES[0], FRAMES[..., :1]])
def test_other_arrays_are_refused(artifacts: Artifacts, wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        artifacts.put_frames("s", "native", 0, wrong)


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    for root in ("nosuch://user:canary@host/x", "canary://"):
        with pytest.raises(StoreError) as caught:
            Artifacts(root, GB)
        assert "user" not in str(caught.value) and caught.value.__cause__ is None
    (tmp_path / "file").write_text("")
    artifacts = Artifacts(str(tmp_path / "file" / "root"), GB)
    assert not artifacts.put_frames("s", "native", 0, FRAMES)
    assert artifacts.frames("s", "native", 0) is None


def test_only_a_folder_is_told_to_make_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """s3fs takes no such word, and says so at the first use."""
    told: list[dict[str, Any]] = []
    given = fsspec.core.url_to_fs

    def noted(url: str, **options: Any) -> Any:
        told.append(options)
        return given(url, **options)

    monkeypatch.setattr(fsspec.core, "url_to_fs", noted)
    for root in (str(tmp_path), f"file://{tmp_path}", "memory://x"):
        Artifacts(root, GB)
    assert told == [{"auto_mkdir": True}, {"auto_mkdir": True}, {}]
