"""Records become token ids and padded batches.

In: files of records, a tokenizer, the cache. Out: `Example`, `Encoded` and seeded batches of numpy
arrays and tensors. The tokenisation of records may be changed here; the frozen model, the posterior
and the generator all use it.
"""
