"""Linear layers, the LM head and attention after shared prompts: pure tensor arithmetic.

In: tensors, lengths and a model's own layers. Out: tensors, equal to the plain
computation up to rounding, and their gradients. Code here may be made faster, but must not change
what is computed.
"""
