"""An example becomes token ids: z-free for the frozen model and the posterior, or with a
latent for the generator.

    z-free       <bos> <x> x </x> <y> y </y> <eos>
    with latent  <bos> <x> x </x> <z> z_k </z> <y> y </y> <eos>

z_k is one vocabulary token, or P tokens if one has too little capacity. y's ids are the same in
both. The S supervised tokens are those of y and its closing tag.

A pretrained chat model has its own template around x and y (see `template`), and the ids are those
that inference has: the prompt's by itself, and behind it what the rendering of the whole adds to
it. The rules above hold for any template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from twcli.data.encoded import HASH, Encoded, numbered, row_hash
from twcli.data.example import Example
from twcli.data.latent_chat import latent_tokens, sections, with_latents
from twcli.data.long_rows import ERROR, LongRows
from twcli.data.template import CHAT, FILE, Template
from twcli.data.token_rows import Marks, TokenRows
from twcli.data.vocabulary import (
    SECTION_TAGS,
    TAGS,
    add_tokens,
    check_vocabulary,
    save_tokenizer,
    state_hash,
    tags_template,
)
from twcli.errors import UserError
from twcli.storage.disk_array import DiskArray

VERSION = 2  # of the ids under a chat template or a file; 1 tokenised x and y apart
TEMPLATE_FILE = "template.txt"  # beside the tokenizer: the template, where it is a file's
SHOWN_IDS = 1000  # ids up to which a fingerprint lists them all; above, it holds their hash
ENCODE_BLOCK = 4096  # rows tokenised at a time: enough for the tokenizer's threads, little memory


class ExampleEncoder:
    """Turns examples into token ids: a tokenizer and the template around x, z and y.

    Args:
        latent_tokens: vocabulary tokens P that spell one latent.
        template: as `read_template` gives it; None for the tags.
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
        tags = TAGS if template is None else SECTION_TAGS
        check_vocabulary(tokenizer, source, tags)
        template = template or tags_template(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.bos = tokenizer.bos_token_id
        self.eos = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            self.pad = self.eos
        self.z_open, self.z_close = (vocabulary[tag] for tag in SECTION_TAGS)
        self.token_rows = TokenRows(tokenizer, source, template)
        self.template = self.token_rows.template

    @property
    def ends(self) -> list[int]:
        """Ids that end a completion."""
        return self.token_rows.ends

    @property
    def y_close(self) -> int | None:
        """The supervised token that ends y; None where it is a text."""
        return self.template.ending.token

    @property
    def end_text(self) -> str:
        """The text that ends y where no token does; else empty."""
        return self.template.ending.text

    @property
    def added_ids(self) -> list[int]:
        """Ids of the tags that were added to the vocabulary, in the order of `added`; their
        embeddings are new rows.
        """
        ids: list[int] = self.tokenizer.convert_tokens_to_ids(self.added)
        return ids

    def spelling(self, tag: str) -> list[int]:
        """Ids that spell a tag as plain text."""
        return self.token_rows.plain.tokenise([tag])[0] or [self.eos]

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
        add_tokens(
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
        if f.chat is not None:
            ending = [f.ending.token, f.ending.text, f.ending.appended]
            content = json.dumps([f.chat.text, ending])
            found = {
                "name": CHAT,
                "version": VERSION,
                "sha256": hashlib.sha256(content.encode()).hexdigest(),
            }
            if f.chat.settings:
                found["settings"] = f.chat.settings
            return found
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
                "version": VERSION,
                "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            }
        return {"name": f.name, "version": VERSION, "ids": ids}

    def tokenizer_hash(self) -> str:
        """sha256 over vocabulary, merges and normalisation, without
        padding and truncation state.
        """
        return state_hash(self.tokenizer)

    def prompt(self, record: Example | str, latent: Sequence[int] | None = None) -> list[int]:
        """Ids up to the start of y; with `latent` (its P ids) including the latent section.

        Args:
            record: x, or a record whose y is not read.

        Raises:
            UserError: x has no token, or one that is a tag; the chat template fails on it.
        """
        row = self.token_rows.prompt(record)
        return self.with_latent([*row.before_z, *row.before_y], latent)

    def with_latent(self, prompt: list[int], latent: Sequence[int] | None) -> list[int]:
        """The ids of a z-free prompt with the section of that latent (its P ids); None leaves them
        as they are.
        """
        if latent is None:
            return list(prompt)
        section = [self.z_open, *latent, self.z_close]
        place = len(prompt) - len(self.template.before_y)
        return [*prompt[:place], *section, *prompt[place:]]

    def router_prompt(self, record: Example | str) -> list[int]:
        """Ids up to the position that predicts the latent; raises as `prompt`."""
        return [*self.token_rows.prompt(record).before_z, self.z_open]

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether generated ids hold what ends y."""
        if not set(self.ends).isdisjoint(ids):
            return True
        return bool(self.end_text) and self.end_text in self.tokenizer.decode(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, cut at what ends y; empty if it is only white space."""
        ids = list(ids)
        for end in self.ends:
            if end in ids:
                ids = ids[: ids.index(end)]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        if self.end_text:
            text = text.split(self.end_text)[0]
        return text if text.strip() else ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined they give the whole text. A token that ends inside a
        character gives an empty string, and the one that completes it has the character.
        """
        pieces = []
        before = ""
        for end in range(1, len(ids) + 1):
            decoded = self.tokenizer.decode(ids[:end])
            text = decoded.rstrip("\ufffd")
            piece = text[len(before) :]
            pieces.append(piece)
            before = text
        return pieces

    def encode(
        self, examples: Iterable[Example], *, max_length: int, source: str, too_long: str = ERROR
    ) -> Encoded:
        """Tokenises all rows in order, a block at a time, without keeping their text.

        Args:
            examples: read once, from first to last.
            max_length: longest sequence in tokens, latent section included.
            source: file name for messages; row i is line i + 1, unless the record says where it is.
            too_long: what is done with longer rows: "error", "skip" or "truncate-left".

        Raises:
            UserError: rows are longer than `max_length`, x or y has no token, or the chat template
                cannot be applied to a conversation.
        """
        rows = iter(examples)
        done = 0
        tokens = 0
        unknown = 0
        marks = Marks(source)
        long = LongRows(max_length, too_long)
        with ExitStack() as arrays:
            types: list[Any] = [np.int32, *[np.int64] * 6, HASH, HASH]
            parts = [arrays.enter_context(DiskArray(dtype)) for dtype in types]
            parts[1].append([0])
            while block := list(islice(rows, ENCODE_BLOCK)):
                *pieces, strange = self._encode_block(block, done, long, source, marks)
                pieces[1] = tokens + np.cumsum(pieces[1])
                for part, piece in zip(parts, pieces, strict=True):
                    part.append(piece)
                done += len(block)
                unknown += strange
                tokens += len(pieces[0])
            long.check(done)
            ids, offsets, prompts, targets, starts, lengths, numbers, hashes, keys = (
                part.array() for part in parts
            )
        return Encoded(
            ids=ids,
            offsets=offsets,
            prompt_lengths=prompts,
            target_lengths=targets,
            x_starts=starts,
            x_lengths=lengths,
            row_hash=hashes.view(np.uint8).reshape(-1, HASH.itemsize),
            prompt_index=numbered(keys),
            unknown_rows=unknown,
            notes=(*self.token_rows.notes(), *marks.notes(done), *long.notes(done)),
            row_numbers=numbers if long.skipped else None,
            too_long=long.counts(),
        )

    def _encode_block(
        self, block: list[Example], first: int, long: LongRows, source: str, marks: Marks
    ) -> list[Any]:
        """What a block adds to the fields of `Encoded`, in their order: lengths instead of offsets,
        hashes of the prompt instead of prompt numbers.
        """
        places = [e.where or f"{source}:{row}" for row, e in enumerate(block, start=first + 1)]
        if self.template.name == "tags":
            trailing = self.template.after_y[1:]
        else:
            trailing = []
        sequences: list[int] = []
        sizes: list[tuple[int, ...]] = []
        hashes = []
        keys = []
        around = len(trailing) + self.latent_section
        unknown_id = self.tokenizer.unk_token_id
        unknown = 0
        whole = zip(self.token_rows.of(block, places, marks), places, strict=True)
        for number, (given, place) in enumerate(whole, start=first):
            row = long.fit(given, around, place)
            if row is None:
                continue
            if not row.kept:
                marks.crossed.add(place)
            sequence = [*row.before_z, *row.before_y, *row.target, *trailing]
            prompt = len(row.before_z) + len(row.before_y)
            x_length = row.x_stop - row.x_start
            sequences += sequence
            sizes.append(
                (len(sequence), prompt - 1, len(row.target), row.x_start, x_length, number)
            )
            if self.template.name == "tags":
                key = row.before_z[row.x_start : row.x_stop]
                y = row.target[:-1]
            else:
                key = sequence[:prompt]
                y = row.target
            key_bytes = np.asarray(key, np.int32).tobytes()
            hashes.append(row_hash(key_bytes, np.asarray(y, np.int32).tobytes()))
            keys.append(hashlib.blake2b(key_bytes, digest_size=HASH.itemsize).digest())
            unknown += unknown_id is not None and unknown_id in sequence
        columns = np.array(sizes, np.int64).reshape(-1, 6).T
        both = (np.frombuffer(b"".join(digests), HASH) for digests in (hashes, keys))
        return [sequences, *columns, *both, unknown]

    def save(self, folder: Path, latents: int) -> None:
        """Saves the tokenizer as inference needs it: its chat template takes `latent=k` and gives
        the prompts that were trained; a template file lies beside it as `template.txt`.

        Raises:
            UserError: what was saved does not load as the tokenizer that it was.
        """
        chat = self.template.chat
        own = self.tokenizer.chat_template
        if chat is not None:
            found = sections(latents, self.latent_tokens, {})
            self.tokenizer.chat_template = with_latents(chat.text, found)
        try:
            save_tokenizer(self.tokenizer, folder, self.source)
        finally:
            self.tokenizer.chat_template = own
        if self.template.name == FILE:
            (folder / TEMPLATE_FILE).write_text(self.template.text + "\n", encoding="utf-8")
