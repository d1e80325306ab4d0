"""The command line: parse, call, render. Data goes to stdout, progress and notes to stderr."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Entry point of `fa-tune`; every error becomes one message and its exit code."""
    from fa_tuner.domain.errors import FaTuneError, InterruptedByUser, outcome

    from .app import app

    try:
        app()
    except FaTuneError as error:
        _report(error, outcome(type(error)).exit_code, outcome(type(error)).problem_type)
    except KeyboardInterrupt:
        _report(InterruptedByUser(), 130, "interrupted")
    except BrokenPipeError:
        # the reader of our output went away (`fa-tune studies | head`); there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("FA_TUNE_DEBUG"):
            raise
        _report(FaTuneError(f"internal error: {type(error).__name__}; FA_TUNE_DEBUG=1 shows where"), 1, "internal")


def _report(error: Exception, exit_code: int, problem_type: str) -> None:
    if "--json" in sys.argv:
        sys.stderr.write(json.dumps({"type": problem_type, "detail": str(error), "exit_code": exit_code}) + "\n")
    else:
        sys.stderr.write(f"fa-tune: {error}\n")
    raise SystemExit(exit_code)
