"""Reading a GGUF file once: transformers parses it for the tokenizer, for the configuration and for
the weights, and builds its map of names again for each layer, which together takes several times
as long as the weights themselves.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

_inside = False


@contextmanager
def once() -> Iterator[None]:
    """Within it the `gguf` package parses a file once, and keeps what it found till the end."""
    global _inside
    if _inside or importlib.util.find_spec("gguf") is None:
        yield
        return
    import gguf

    theirs = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    _inside = True
    try:
        # transformers takes them from the package at each call
        for name, function in theirs.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in theirs.items():
            setattr(gguf, name, function)
        _inside = False
