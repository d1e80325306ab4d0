"""The REST service: parse, call, render. Installed as `fa_tuner_api`."""

from .app import create_app

__all__ = ["create_app"]
