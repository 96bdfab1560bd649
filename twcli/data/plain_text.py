"""Texts become token ids, in which the text of a special token is plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any


class PlainText:
    """Tokenises texts without special tokens: what a user writes must not open or close a section.

    Args:
        tokenizer: of transformers; its own state is left as it was.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens of its own."""
        if not texts:
            return []
        if self._inner is not None:
            return _ids_of(self._inner, texts)
        # What other classes do besides is theirs; this one builds masks and offsets that nobody
        # reads, in two thirds of its time.
        method = getattr(type(self._tokenizer), "_encode_plus", None)
        if getattr(method, "__qualname__", "") == "TokenizersBackend._encode_plus":
            backend = self._tokenizer.backend_tokenizer
            backend.no_padding()
            backend.no_truncation()
            split = backend.encode_special_tokens
            backend.encode_special_tokens = True
            try:
                return _ids_of(backend, texts)
            finally:
                backend.encode_special_tokens = split
        ids: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    @cached_property
    def _inner(self) -> Any:
        """The tokenizer for a text that stands behind another: one that puts a space before the
        first text alone (SentencePiece's, not legacy) puts none.
        """
        state = self._tokenizer.backend_tokenizer.to_str()
        if not re.search(r'"prepend_scheme":\s*"first"', state):
            return None
        from tokenizers import Tokenizer

        inner = Tokenizer.from_str(re.sub(r'("prepend_scheme":\s*)"first"', r'\1"never"', state))
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        return inner


def _ids_of(backend: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text by a `tokenizers.Tokenizer`."""
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
