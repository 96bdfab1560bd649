"""Files that survive a kill, a full disk and a flipped bit.

In: arrays, tensors and mappings. Out: the cache of b_t, checkpoints and the run folder, written
whole or not at all, and refused where they were changed. How a file is laid out may be changed
here, with its format version; nothing here knows a model.
"""
