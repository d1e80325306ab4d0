"""Tests mirror the rooms of `fa_tuner`; `support` is what several of them build on."""
