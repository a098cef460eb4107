"""What vconfs costs, as ratios between peers that are measured in one run.

Each module of this package that has a `main()` is a benchmark: `python -m benchmarks` runs them
all, `python -m benchmarks NAME...` those named.
"""
