"""The costs of vconfs, as ratios between peers that are measured in one run.

Each module of this package that has a `main()` is a benchmark. `python -m benchmarks` runs all
of them, `python -m benchmarks NAME...` some of them.
"""
