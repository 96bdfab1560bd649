"""A setup goes in; metrics come out step by step, and a trained model lies in the run folder.

In: a `TrainConfig` and what it names. Out: the run folder. The loss, its regularisers,
the stages and what is logged may be changed here; `loss.py` and `regularisers.py` are
pure functions of tensors.
"""
