"""Frames on disk, or wherever fsspec reaches: the baseline's and the front's, within a quota."""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np

from fa_tuner.domain.errors import StoreError
from fa_tuner.domain.policy import NATIVE
from fa_tuner.store.rows import digest

if TYPE_CHECKING:
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]  # [frames, height, width, 3], RGB


IMAGES = "images"  # a folder beside those of studies, which are called by a digest


class Artifacts:
    """Lossless frames and clips, one file of each a study, policy and case.

    Names on disk are SHA-256 digests; no client's text becomes a path. One process writes to a study at a time, any
    number read.
    """

    def __init__(self, root: str, quota_bytes: int) -> None:
        """`root` is a folder or an fsspec URL; `quota_bytes` bounds all studies together.

        Raises:
            StoreError: a kind of URL that fsspec does not know, or whose package is missing.
        """
        try:
            # an object store has no folders to make, and s3fs takes no such word
            options = {} if "://" in root and not root.startswith("file://") else {"auto_mkdir": True}
            self._files, self._root = fsspec.core.url_to_fs(root, **options)
        except (ValueError, ImportError, OSError) as error:
            # Only the scheme: the rest may hold a password, and so may the cause.
            raise StoreError(
                f"the artifact store of kind {root.partition('://')[0][:40]!r} cannot be opened "
                f"({type(error).__name__}); name a folder, or a URL that an installed fsspec package knows"
            ) from None
        self._quota = quota_bytes

    def put_frames(self, study: str, policy_key: str, case_index: int, frames: Frames) -> bool:
        """Keep uint8 frames [frames, height, width, 3]; readers see the whole file or none. False where the quota or
        the disk has no room for it; then nothing was changed.

        Raises:
            ValueError: frames of another type or shape.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 [frames, height, width, 3]")
        packed = io.BytesIO()
        np.savez_compressed(packed, frames=frames)
        return self._put(study, self._path(study, policy_key, case_index, "npz"), packed.getvalue())

    def put_clip(self, study: str, policy_key: str, case_index: int, encoded: bytes) -> bool:
        """Keep an encoded clip (MP4) for people to look at; as `put_frames`."""
        return self._put(study, self._path(study, policy_key, case_index, "mp4"), encoded)

    def clip(self, study: str, policy_key: str, case_index: int) -> bytes | None:
        """The clip as it was put; None where there is none.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        return self._read(self._path(study, policy_key, case_index, "mp4"))

    def packed_frames(self, study: str, policy_key: str, case_index: int) -> bytes | None:
        """As `frames`, as they are kept: NumPy's compressed archive (.npz) with the one array `frames`.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        return self._read(self._path(study, policy_key, case_index, "npz"))

    def frames(self, study: str, policy_key: str, case_index: int) -> Frames | None:
        """The frames as they were put; None where there are none, or where the file was damaged and is now removed.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        path = self._path(study, policy_key, case_index, "npz")
        packed = self._read(path)
        if packed is None:
            return None
        unpacked = _unpacked(packed)
        if unpacked is None:
            self._remove(path)
        return unpacked

    def put_image(self, content: bytes) -> str | None:
        """Keep a picture that a client sent; its id, which is the SHA-256 of its bytes. None where the quota or the
        disk has no room for it."""
        name = hashlib.sha256(content).hexdigest()
        path = f"{self._root}/{IMAGES}/{name}"
        return name if self._files.exists(path) or self._put(IMAGES, path, content) else None

    def image(self, name: str) -> bytes | None:
        """The picture of that id; None where there is none.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        return self._read(f"{self._root}/{IMAGES}/{name}") if re.fullmatch("[0-9a-f]{64}", name) else None

    def keep(self, study: str, policy_keys: Iterable[str]) -> None:
        """Delete the frames of every policy but these and the native one, and what an interrupted write left.

        Raises:
            StoreError: the folder cannot be read or changed.
        """
        kept = {digest(key) for key in (NATIVE, *policy_keys)}
        try:
            self._files.invalidate_cache()
            for entry in self._files.ls(self._folder(study), detail=False):
                if entry.rstrip("/").rpartition("/")[2] not in kept:
                    self._files.rm(entry, recursive=True)
        except FileNotFoundError:
            return  # nothing was ever put
        except OSError as error:
            raise self._failed("tidy", error) from error

    def delete(self, study: str) -> None:
        """Delete all frames of a study; none is fine too.

        Raises:
            StoreError: the folder cannot be changed.
        """
        try:
            self._files.rm(self._folder(study), recursive=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("delete from", error) from error

    def used_bytes(self) -> int:
        """The size of all files, of all studies.

        Raises:
            StoreError: the folder cannot be read.
        """
        try:
            self._files.invalidate_cache()
            return sum(int(info["size"] or 0) for info in self._files.find(self._root, detail=True).values())
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._failed("read", error) from error

    def _folder(self, study: str) -> str:
        return f"{self._root}/{digest(study)}"

    def _path(self, study: str, policy_key: str, case_index: int, kind: str) -> str:
        return f"{self._folder(study)}/{digest(policy_key)}/{int(case_index)}.{kind}"

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("read", error) from error

    def _put(self, study: str, path: str, data: bytes) -> bool:
        """Write under another name, then move: whole or not at all."""
        unfinished = f"{self._folder(study)}/unfinished-{uuid.uuid4().hex}"
        try:
            replaced = self._files.size(path) if self._files.exists(path) else 0
            if self.used_bytes() - replaced + len(data) > self._quota:
                return False
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(unfinished, data)
            self._files.mv(unfinished, path)
        except (OSError, StoreError):
            self._remove(unfinished)
            return False
        return True

    def _remove(self, path: str) -> None:
        try:
            self._files.rm_file(path)
        except OSError:
            return  # it is gone already, or stays until `keep`

    def _failed(self, verb: str, error: OSError) -> StoreError:
        said = error.strerror or type(error).__name__
        return StoreError(
            f"cannot {verb} the artifacts in {self._root}: {said}; "
            "check that the folder exists and is writable, or name another"
        )


def _unpacked(packed: bytes) -> Frames | None:
    """None for whatever is no archive of uint8 frames."""
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            frames: npt.NDArray[Any] = archive["frames"]
    except MemoryError:
        raise  # says nothing about the file
    except Exception:  # zip, zlib, struct and numpy each have their own; each means that the file is damaged
        return None
    return frames if frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 else None
