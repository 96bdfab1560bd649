"""Linear layers, the head and attention after shared prompts: pure tensor arithmetic.

In: tensors, lengths and a model's own layers. Out: tensors, equal to the plain
computation up to rounding, and their gradients. How fast something is computed may be
changed here, never what is computed.
"""
