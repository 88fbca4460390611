"""Tests; `tests/benchmarks` is run by `make bench`."""
