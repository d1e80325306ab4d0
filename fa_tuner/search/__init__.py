"""The Optuna study over skip selectors; the only room that imports optuna."""
