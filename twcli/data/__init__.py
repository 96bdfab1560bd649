"""Records become token ids and padded batches.

In: files of records, a tokenizer, the cache. Out: `Example`, `Encoded` and seeded batches of numpy
arrays and tensors. How a record is written as tokens may be changed here; the frozen model, the
posterior and the generator all read what this gives.
"""
