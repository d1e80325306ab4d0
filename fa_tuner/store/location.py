"""Where things are kept when nobody says."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def default_url() -> str:
    """A SQLite file in the user's data folder."""
    return f"sqlite:///{_folder() / 'fa-tune.db'}"


def default_artifacts() -> str:
    """The folder of the frames, beside the database."""
    return str(_folder() / "artifacts")


def _folder() -> Path:
    return Path(platformdirs.user_data_dir("fa-tune", appauthor=False))
