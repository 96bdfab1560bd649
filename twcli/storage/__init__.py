"""Files that survive a kill, a full disk and a flipped bit.

In: arrays, tensors and mappings. Out: the cache of b_t, checkpoints and the run folder. Each is
written completely or not at all, and refused if it was changed later. A file's layout may be
changed here, together with its format version; nothing here depends on a model.
"""
