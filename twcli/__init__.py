"""twcli: discrete latent strategies for language models by token-weighted
variational post-training.
"""

__version__ = "0.2.0"
