"""Speed and quality, measured: each script writes a table. Run from the repository's root:
`python benchmarks/bench.py`.
"""
