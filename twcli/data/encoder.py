"""An example becomes token ids: z-free for the frozen model and the posterior, or with a
latent for the generator.

    z-free       <bos> <x> x </x> <y> y </y> <eos>
    with latent  <bos> <x> x </x> <z> z_k </z> <y> y </y> <eos>

z_k is one vocabulary token, or P tokens if one has too little capacity. x and y are tokenised
separately from everything around them, so y's ids are the same in both. The S supervised tokens are
those of y and its closing tag.

A pretrained chat model has its own template around x and y (see `frame`). The rules above hold for
any template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from twcli.data.example import Example
from twcli.data.template import Template, specials
from twcli.errors import UserError
from twcli.storage.disk_array import DiskArray

SECTION_TAGS = ("<z>", "</z>")
TAGS = ("<x>", "</x>", "<y>", "</y>", *SECTION_TAGS)
HASH = np.dtype("V16")
SHOWN_IDS = 1000  # ids up to which a fingerprint lists them all; above, it holds their hash
ENCODE_BLOCK = 4096  # rows tokenised at a time: enough for the tokenizer's threads, little memory


def latent_tokens(k: int, count: int = 1) -> list[str]:
    """The vocabulary tokens that spell latent k: `<z3>`, or `<z3.0> <z3.1>` for two."""
    return [f"<z{k}>"] if count == 1 else [f"<z{k}.{p}>" for p in range(count)]


@dataclass(frozen=True)
class Encoded:
    """All rows' z-free token ids in one flat array. There is no Python object per row, and the
    large arrays are disk-backed (`DiskArray`).

    Attributes:
        ids: (sum of lengths,) int32, the z-free sequences one after another.
        offsets: (N + 1,) int64 into `ids`.
        prompt_lengths: (N,) int64, tokens before the one that predicts the first token of y: those
            of `<bos> <x> x </x>`.
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

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each z-free sequence."""
        return np.diff(self.offsets)

    @property
    def target_offsets(self) -> np.ndarray:
        """(N + 1,) int64 offsets of each row's supervised tokens: the cache's `/offsets`."""
        return np.concatenate([[0], np.cumsum(self.target_lengths)]).astype(np.int64)

    def y_ids(self, row: int) -> list[int]:
        """Token ids of a row's y, without its closing tag."""
        first = self.offsets[row] + self.prompt_lengths[row] + 1
        ids: list[int] = self.ids[first : first + self.target_lengths[row] - 1].tolist()
        return ids

    def spread_rows(self, count: int) -> np.ndarray:
        """At most `count` evenly spaced row numbers, the first and the last included."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)

    def data_hash(self) -> str:
        """sha256 over all row hashes in order; it depends on x, y and the order of records, and on
        nothing else.
        """
        return hashlib.sha256(self.row_hash.tobytes()).hexdigest()


def add_tags(tokenizer: Any, template: Template | None) -> list[str]:
    """Adds the tags that the frame needs and the vocabulary lacks; returns them."""
    vocabulary = tokenizer.get_vocab()
    added = [tag for tag in (TAGS if template is None else SECTION_TAGS) if tag not in vocabulary]
    _add_tokens(tokenizer, added)
    return added


def _add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Adds tokens at the end of the vocabulary; they are never split."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )


class ExampleEncoder:
    """A prompt template with its tokenizer.

    Args:
        latent_tokens: vocabulary tokens P that spell one latent.
        frame: as `frame.read_template` gives it; None for the tags.
        added: tags that `add_tags` added, which the model has never seen.

    Raises:
        UserError: the tokenizer lacks a tag, which `add_tags` would add, or `<eos>`.
    """

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        latent_tokens: int = 1,
        template: Template | None = None,
        added: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.added = list(added)
        self.source = source
        self.latent_tokens = latent_tokens
        self.embedded: int | None = None  # ids below it have an embedding row; None if not known
        vocabulary = tokenizer.get_vocab()
        tags = TAGS if template is None else SECTION_TAGS
        missing = [tag for tag in tags if tag not in vocabulary] + (
            ["eos_token"] if tokenizer.eos_token is None else []
        )
        if missing:
            how = (
                'set "eos_token" in its tokenizer_config.json to the token that ends a text, such '
                "as </s>"
                if tokenizer.eos_token is None
                else "add it to the tokenizer"
            )
            raise UserError(f"{source}: the tokenizer has no {', '.join(missing)}; {how}")
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.z_open, self.z_close = (vocabulary[tag] for tag in SECTION_TAGS)
        if template is None:
            x_open, x_close, y_open, y_close = (vocabulary[tag] for tag in TAGS[:4])
            begin = [] if self.bos is None else [self.bos]
            text = f"{tokenizer.bos_token or ''}<x>{{x}}</x>{{z}}<y>{{y}}</y>{tokenizer.eos_token}"
            template = Template(
                "tags", text, [*begin, x_open], [x_close], [y_open], [y_close, self.eos]
            )
        self.template = template
        fixed = {self.eos, self.z_open, self.z_close, template.after_y[0]}
        around = {*template.before_x, *template.before_z, *template.before_y, *template.after_y}
        self._reserved = frozenset(
            fixed | (around if template.name == "tags" else around & specials(tokenizer))
        )

    @property
    def y_close(self) -> int:
        """The supervised token that ends y."""
        return self.template.after_y[0]

    @property
    def added_ids(self) -> list[int]:
        """Ids of the tags that were added."""
        ids: list[int] = self.tokenizer.convert_tokens_to_ids(self.added)
        return ids

    def spelling(self, tag: str) -> list[int]:
        """Ids that spell a tag as plain text."""
        return self._tokenise([tag])[0] or [self.eos]

    def latent_ids(self, latents: int) -> list[list[int]]:
        """The P ids of each of the K latents; needs `add_latents` first.

        Raises:
            UserError: the tokenizer has no such tokens.
        """
        vocabulary = self.tokenizer.get_vocab()
        try:
            return [
                [vocabulary[token] for token in latent_tokens(k, self.latent_tokens)]
                for k in range(latents)
            ]
        except KeyError as error:
            raise UserError(f"{self.source}: the tokenizer has no latent token {error}") from error

    def add_latents(self, latents: int) -> None:
        """Adds `<z0>` ... `<z(K-1)>` to the vocabulary, P tokens each."""
        _add_tokens(
            self.tokenizer,
            [token for k in range(latents) for token in latent_tokens(k, self.latent_tokens)],
        )

    @property
    def section_shift(self) -> int:
        """Start of the latent section relative to `Encoded.prompt_lengths`: 0 for the tags, 1 if y
        follows the section directly.
        """
        return 1 - len(self.template.before_y)

    @property
    def latent_section(self) -> int:
        """Tokens that a latent adds to the z-free sequence: `<z> z_k </z>`, 2 + P."""
        return 2 + self.latent_tokens

    def fingerprint(self) -> dict[str, Any]:
        """The part of the template that b_t depends on: the ids around x and y."""
        f = self.template
        if f.name == "tags":
            return {
                "name": "tags",
                "version": 1,
                "ids": [
                    *f.before_x,
                    *f.before_z,
                    self.z_open,
                    self.z_close,
                    *f.before_y,
                    *f.after_y,
                ],
            }
        ids = [f.before_x, f.before_z, [self.z_open, self.z_close], f.before_y, f.after_y]
        if sum(map(len, ids)) > SHOWN_IDS:
            return {
                "name": f.name,
                "version": 1,
                "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            }
        return {"name": f.name, "version": 1, "ids": ids}

    def tokenizer_hash(self) -> str:
        """sha256 over vocabulary, merges and normalisation, without
        padding and truncation state.
        """
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        # Tags inside a user's text are text: they must not open or close a section.
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def prompt(self, x: str, latent: Sequence[int] | None = None) -> list[int]:
        """Ids up to the start of y; with `latent` (its P ids) including the latent section.

        Raises:
            UserError: x has no token, or one that is a tag.
        """
        section = [] if latent is None else [self.z_open, *latent, self.z_close]
        return [
            *self.template.before_x,
            *self._x_ids(x),
            *self.template.before_z,
            *section,
            *self.template.before_y,
        ]

    def router_prompt(self, x: str) -> list[int]:
        """Ids up to the position that predicts the latent; raises as `prompt`."""
        return [*self.template.before_x, *self._x_ids(x), *self.template.before_z, self.z_open]

    def _x_ids(self, x: str) -> list[int]:
        ids = self._tokenise([x])[0]
        self._check_text("x", ids, repr(x[:60]))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, cut at the closing tag; empty if it is only white space."""
        ids = list(ids)
        for end in (self.y_close, self.eos):
            if end in ids:
                ids = ids[: ids.index(end)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text if text.strip() else ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined they give the whole text. A token that ends inside a
        character gives an empty string.
        """
        texts = [self.tokenizer.decode(ids[: end + 1]) for end in range(len(ids))]
        texts = [text.rstrip("\ufffd") for text in texts]
        return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]

    def encode(self, examples: Iterable[Example], *, max_length: int, source: str) -> Encoded:
        """Tokenises all rows in order, a block at a time, without keeping their text.

        Args:
            max_length: longest sequence in tokens, latent section included.
            source: file name for messages; row i is line i + 1.

        Raises:
            UserError: a row is longer than `max_length`, or x or y has no token.
        """
        rows, done, tokens, unknown = iter(examples), 0, 0, 0
        with ExitStack() as arrays:
            parts = [
                arrays.enter_context(DiskArray(dtype))
                for dtype in (np.int32, np.int64, np.int64, np.int64, HASH, HASH)
            ]
            parts[1].append([0])
            while block := list(islice(rows, ENCODE_BLOCK)):
                *pieces, strange = self._encode_block(block, done, max_length, source)
                pieces[1] = tokens + np.cumsum(pieces[1])
                for part, piece in zip(parts, pieces, strict=True):
                    part.append(piece)
                done, tokens, unknown = done + len(block), pieces[1][-1], unknown + strange
            ids, offsets, prompts, targets, hashes, keys = (part.array() for part in parts)
        return Encoded(
            ids=ids,
            offsets=offsets,
            prompt_lengths=prompts,
            target_lengths=targets,
            row_hash=hashes.view(np.uint8).reshape(-1, HASH.itemsize),
            prompt_index=_numbered(keys),
            unknown_rows=unknown,
        )

    def _encode_block(
        self, block: list[Example], first: int, max_length: int, source: str
    ) -> list[Any]:
        """What a block adds to the fields of `Encoded`, in their order: lengths instead of offsets,
        hashes of x instead of prompt numbers.
        """
        before_x, before_z, before_y, after_y = (
            self.template.before_x,
            self.template.before_z,
            self.template.before_y,
            self.template.after_y,
        )
        around = len(before_x) + len(before_z) + len(before_y)
        sequences: list[int] = []
        lengths, prompts, targets, hashes, keys = [], [], [], [], []
        unknown = 0
        xs, ys = self._tokenise([e.x for e in block]), self._tokenise([e.y for e in block])
        for row, (x, y) in enumerate(zip(xs, ys, strict=True), start=first):
            sequence = [*before_x, *x, *before_z, *before_y, *y, *after_y]
            self._check(x, y, len(sequence), max_length, f"{source}:{row + 1}")
            sequences += sequence
            lengths.append(len(sequence))
            prompts.append(around + len(x) - 1)
            targets.append(len(y) + 1)
            key = np.asarray(x, np.int32).tobytes()
            hashes.append(row_hash(key, np.asarray(y, np.int32).tobytes()))
            keys.append(hashlib.blake2b(key, digest_size=HASH.itemsize).digest())
            unknown += (
                self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in sequence
            )
        return [
            sequences,
            lengths,
            prompts,
            targets,
            np.frombuffer(b"".join(hashes), HASH),
            np.frombuffer(b"".join(keys), HASH),
            unknown,
        ]

    def _check(self, x: list[int], y: list[int], length: int, max_length: int, where: str) -> None:
        self._check_text("x", x, where)
        self._check_text("y", y, where)
        if length + self.latent_section > max_length:
            raise UserError(
                f"{where}: {length + self.latent_section} tokens with the latent section "
                f"({len(x)} of x, {len(y)} of y) are more than the limit of {max_length}; "
                "shorten y or raise --max-length within the model's context"
            )

    def _check_text(self, field: str, tokens: list[int], where: str) -> None:
        if not tokens:
            raise UserError(
                f"{where}: field '{field}' has no token in the vocabulary of {self.source}"
            )
        if self.embedded is not None and max(tokens) >= self.embedded:
            token = self.tokenizer.convert_ids_to_tokens(max(tokens))
            raise UserError(
                f"{where}: field '{field}' contains {token}, for which the model at {self.source} "
                "has no embedding; take it out of the text"
            )
        if not self._reserved.isdisjoint(tokens):  # a word-level vocabulary has the tags as words
            tag = self.tokenizer.convert_ids_to_tokens(
                next(t for t in tokens if t in self._reserved)
            )
            raise UserError(
                f"{where}: field '{field}' contains {tag}, which the template uses as a tag; "
                "rename it in the text"
            )


def _numbered(keys: np.ndarray) -> np.ndarray:
    """(N,) int64: equal keys share a number, counted from 0 in order of first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse.reshape(-1)]


def row_hash(x_ids: bytes, y_ids: bytes) -> bytes:
    """`HASH`: 16 bytes over a row's x and y ids; the length of x distinguishes ("ab", "c") from
    ("a", "bc").
    """
    return hashlib.blake2b(
        len(x_ids).to_bytes(8, "little") + x_ids + y_ids, digest_size=HASH.itemsize
    ).digest()
