"""`python -m fa_tuner.cli`, for processes that start others."""

from fa_tuner.cli import main

main()
