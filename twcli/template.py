"""An example becomes token ids: z-free for the frozen model and the posterior, or with a latent for the generator.

    z-free       <bos> <x> x </x> <y> y </y> <eos>
    with latent  <bos> <x> x </x> <z> z_k </z> <y> y </y> <eos>

z_k is one vocabulary token, or P of them where one is too narrow a channel.
x and y are tokenised apart from everything around them, so y's ids are the same in both.
Supervised are the S tokens of y and its closing tag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twcli.dataset import Example
from twcli.errors import UserError

TAGS = ("<x>", "</x>", "<y>", "</y>", "<z>", "</z>")
ENCODE_BLOCK = 4096  # rows tokenised at a time: enough for the tokenizer's threads, little memory


def latent_tokens(k: int, count: int = 1) -> list[str]:
    """The vocabulary tokens that spell latent k: `<z3>`, or `<z3.0> <z3.1>` for two."""
    return [f"<z{k}>"] if count == 1 else [f"<z{k}.{p}>" for p in range(count)]


@dataclass(frozen=True)
class Encoded:
    """All rows' z-free token ids in one flat array; no Python object a row.

    Attributes:
        ids: (sum of lengths,) int32, the z-free sequences one after another.
        offsets: (N + 1,) int64 into `ids`.
        prompt_lengths: (N,) int64, tokens of `<bos> <x> x </x>`.
        target_lengths: (N,) int64, supervised tokens S of each row (y and its closing tag).
        row_hash: (N, 16) uint8, blake2b over x's and y's ids.
        prompt_index: (N,) int64, rows with the same x ids share a number.
        unknown_rows: rows with an unknown token.
    """

    ids: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    target_lengths: np.ndarray
    row_hash: np.ndarray
    prompt_index: np.ndarray
    unknown_rows: int

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each z-free sequence."""
        return np.diff(self.offsets)

    @property
    def target_offsets(self) -> np.ndarray:
        """(N + 1,) int64 offsets of each row's supervised tokens: the cache's `/offsets`."""
        return np.concatenate([[0], np.cumsum(self.target_lengths)]).astype(np.int64)

    def data_hash(self) -> str:
        """sha256 over all row hashes in order: x, y and their order, and nothing else of a record."""
        return hashlib.sha256(self.row_hash.tobytes()).hexdigest()


class Template:
    """The tag template over one tokenizer.

    Args:
        latent_tokens: vocabulary tokens P that spell one latent.

    Raises:
        UserError: the tokenizer lacks a tag, `<bos>` or `<eos>`.
    """

    def __init__(self, tokenizer: Any, source: str, latent_tokens: int = 1) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.latent_tokens = latent_tokens
        vocabulary = tokenizer.get_vocab()
        missing = [tag for tag in TAGS if tag not in vocabulary]
        missing += [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]
        if missing:
            raise UserError(f"{source}: the tokenizer has no {', '.join(missing)}; "
                            "train the model on the tag template first (see examples/entangle.py)")
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.x_open, self.x_close, self.y_open, self.y_close, self.z_open, self.z_close = (
            vocabulary[tag] for tag in TAGS)
        self._reserved = frozenset((self.bos, self.eos, *(vocabulary[tag] for tag in TAGS)))

    def latent_ids(self, latents: int) -> list[list[int]]:
        """The P ids of each of the K latents, in a tokenizer that `add_latents` has extended.

        Raises:
            UserError: the tokenizer has no such tokens.
        """
        vocabulary = self.tokenizer.get_vocab()
        try:
            return [[vocabulary[token] for token in latent_tokens(k, self.latent_tokens)] for k in range(latents)]
        except KeyError as error:
            raise UserError(f"{self.source}: the tokenizer has no latent token {error}") from error

    def add_latents(self, latents: int) -> None:
        """Adds `<z0>` ... `<z(K-1)>` to the vocabulary, P tokens each; they come last and are never split."""
        from tokenizers import AddedToken

        tokens = [token for k in range(latents) for token in latent_tokens(k, self.latent_tokens)]
        self.tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)

    @property
    def latent_section(self) -> int:
        """Tokens that a latent adds to the z-free sequence: `<z> z_k </z>`, 2 + P."""
        return 2 + self.latent_tokens

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "tags", "version": 1, "ids": [self.bos, self.x_open, self.x_close, self.z_open, self.z_close,
                                                     self.y_open, self.y_close, self.eos]}

    def tokenizer_hash(self) -> str:
        """sha256 over vocabulary, merges and normalisation, without padding and truncation state."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        # Tags inside a user's text are text: they must not open or close a section.
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def prompt(self, x: str, latent: Sequence[int] | None = None) -> list[int]:
        """Ids up to where y begins, `<y>` included; with `latent` (its P ids) the latent section too."""
        section = [] if latent is None else [self.z_open, *latent, self.z_close]
        return [self.bos, self.x_open, *self._tokenise([x])[0], self.x_close, *section, self.y_open]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, cut at the closing tag."""
        ids = list(ids)
        for end in (self.y_close, self.eos):
            if end in ids:
                ids = ids[: ids.index(end)]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def encode(self, examples: Sequence[Example], *, max_length: int, source: str) -> Encoded:
        """Tokenises all rows, in order.

        Args:
            max_length: longest sequence in tokens, latent section included.
            source: file name for messages; row i is line i + 1.

        Raises:
            UserError: a row is longer than `max_length`, or x or y has no token.
        """
        ids, lengths, prompts, targets, hashes, keys = [], [], [], [], [], []
        numbers: dict[bytes, int] = {}
        unknown = 0
        for start in range(0, len(examples), ENCODE_BLOCK):
            block = examples[start : start + ENCODE_BLOCK]
            xs, ys = self._tokenise([e.x for e in block]), self._tokenise([e.y for e in block])
            for row, (x, y) in enumerate(zip(xs, ys, strict=True), start=start):
                sequence = [self.bos, self.x_open, *x, self.x_close, self.y_open, *y, self.y_close, self.eos]
                self._check(x, y, len(sequence), max_length, f"{source}:{row + 1}")
                ids.append(np.asarray(sequence, np.int32))
                lengths.append(len(sequence))
                prompts.append(len(x) + 3)
                targets.append(len(y) + 1)
                key = np.asarray(x, np.int32).tobytes()
                hashes.append(row_hash(key, np.asarray(y, np.int32).tobytes()))
                keys.append(numbers.setdefault(hashlib.blake2b(key, digest_size=16).digest(), len(numbers)))
                unknown += self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in sequence
        return Encoded(
            ids=np.concatenate(ids), offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            prompt_lengths=np.asarray(prompts, np.int64), target_lengths=np.asarray(targets, np.int64),
            row_hash=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16),
            prompt_index=np.asarray(keys, np.int64), unknown_rows=unknown)

    def _check(self, x: list[int], y: list[int], length: int, max_length: int, where: str) -> None:
        for field, tokens in (("x", x), ("y", y)):
            if not tokens:
                raise UserError(f"{where}: field '{field}' has no token in the vocabulary of {self.source}")
            if not self._reserved.isdisjoint(tokens):  # a word-level vocabulary holds the tags as words
                tag = self.tokenizer.convert_ids_to_tokens(next(t for t in tokens if t in self._reserved))
                raise UserError(f"{where}: field '{field}' contains {tag}, which the template uses as a tag; rename it in the text")
        if length + self.latent_section > max_length:
            raise UserError(f"{where}: {length + self.latent_section} tokens with the latent section ({len(x)} of x, {len(y)} of y) "
                            f"are more than the limit of {max_length}; shorten y or raise --max-length within the model's context")


def row_hash(x_ids: bytes, y_ids: bytes) -> bytes:
    """16 bytes over a row's x and y ids; the length of x keeps ("ab", "c") apart from ("a", "bc")."""
    return hashlib.blake2b(len(x_ids).to_bytes(8, "little") + x_ids + y_ids, digest_size=16).digest()
