"""Shares of b_t from which on weighting by it changes little: what `train` and `inspect` go by.
Imports nothing, so that a cache is inspected without waiting for torch.
"""

# more rows than this without mass: most of the data trains on the uniform average
DEGENERATE_ROWS = 0.5
# effective t0 / T above this: the weighted average is all but the uniform one
DEGENERATE_FLAT = 0.9
