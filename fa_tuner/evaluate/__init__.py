"""Frames and timings in, a Measurement out: quality, latency, baseline and noise floor, coverage proof."""
