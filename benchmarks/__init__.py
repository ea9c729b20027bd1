"""How fast raygrid is: against the arithmetic's ideal, and against what one would write instead.

`python -m benchmarks NAME [--quick] [--keep]`: figures for people, then one JSON object as the last line. `--quick` is
a toy size that shows only that the benchmark works; `--keep` writes `benchmarks/results/DATE-NAME.json`.
`python -m benchmarks table` prints the README's table, made from the kept results.

Machines are shared, so ratios are taken between CPU seconds of single-threaded work, variants take turns, and every
figure is a median with its range. Every ratio stands beside its ceiling, which raygrid.cost computes.
"""
