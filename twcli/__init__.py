"""twcli: discrete latent strategies for language models by token-weighted
variational post-training.

    from twcli import precompute, discover, train, evaluate
"""

import importlib
from typing import Any

__version__ = "0.2.0"

__all__ = ["discover", "evaluate", "precompute", "train"]


def __getattr__(name: str) -> Any:
    # importing torch and transformers takes seconds, so not before they are needed
    if name in __all__:
        return getattr(importlib.import_module("twcli.commands.library"), name)
    raise AttributeError(f"module 'twcli' has no attribute '{name}'")
