"""A first posterior without labels, and a score without labels.

In: features and likelihoods of the completions of many prompts. Out: which latent each completion
takes, how well that is predicted on other prompts, and the alignment to expect. How strategies are
found and judged may be changed here; labels are never read.
"""
