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
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from twcli.data.chat import Rendered
from twcli.data.equal_rows import first_of_equal
from twcli.data.example import Example
from twcli.data.latent_chat import latent_tokens, sections, with_latents
from twcli.data.long_rows import ERROR, LongRows
from twcli.data.template import CHAT, FILE, Ending, Template, specials
from twcli.data.vocabulary import (
    SECTION_TAGS,
    TAGS,
    add_tokens,
    check_vocabulary,
    save_tokenizer,
    state_hash,
    tags_template,
)
from twcli.data.whole_text import TokenRow, WholeText
from twcli.errors import UserError
from twcli.storage.disk_array import DiskArray

HASH = np.dtype("V16")
VERSION = 2  # of the ids under a chat template or a file; 1 tokenised x and y apart
TEMPLATE_FILE = "template.txt"  # beside the tokenizer: the template, where it is a file's
SHOWN_IDS = 1000  # ids up to which a fingerprint lists them all; above, it holds their hash
ENCODE_BLOCK = 4096  # rows tokenised at a time: enough for the tokenizer's threads, little memory
LATENT_TEXT = re.compile(r"</?z>|<z\d+(\.\d+)?>")  # becomes a token in a trained model's vocabulary


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
        x_starts, x_lengths: (N,) int64, the tokens of x, or of the turn that is answered.
        row_hash: (N, 16) uint8, blake2b over the ids: those of x and y between tags, which are the
            same for all rows, else those of the prompt and of the target.
        prompt_index: (N,) int64, rows with the same prompt share a number.
        unknown_rows: rows with an unknown token.
        notes: lines to show to the user: rows whose ids are not those of the whole text.
        row_numbers: (N,) int64, the rows' numbers in the data, ascending: too long ones may be left
            out. None if there are all.
        too_long: rows that were left out or shortened, by what was done.
    """

    ids: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    target_lengths: np.ndarray
    x_starts: np.ndarray
    x_lengths: np.ndarray
    row_hash: np.ndarray
    prompt_index: np.ndarray
    unknown_rows: int
    notes: tuple[str, ...] = ()
    row_numbers: np.ndarray | None = None
    too_long: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each z-free sequence."""
        return np.diff(self.offsets)

    @cached_property
    def target_offsets(self) -> np.ndarray:
        """(N + 1,) int64 offsets of each row's supervised tokens: the cache's `/offsets`."""
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.target_lengths, out=offsets[1:])
        return offsets

    def y_ids(self, row: int) -> list[int]:
        """Token ids of a row's y, without its closing tag."""
        first = self.offsets[row] + self.prompt_lengths[row] + 1
        closing_tag = first + self.target_lengths[row] - 1
        ids: list[int] = self.ids[first:closing_tag].tolist()
        return ids

    def prompt_ids(self, row: int) -> list[int]:
        """Token ids of a row's prompt, up to y."""
        first = self.offsets[row]
        ids: list[int] = self.ids[first : first + self.prompt_lengths[row] + 1].tolist()
        return ids

    def number(self, row: int) -> int:
        """A row's number in the data."""
        if self.row_numbers is None:
            return int(row)
        return int(self.row_numbers[row])

    def spread_rows(self, count: int) -> np.ndarray:
        """At most `count` evenly spaced row numbers, the first and the last included."""
        count = min(count, len(self))
        return np.linspace(0, len(self) - 1, count).astype(int)

    def data_hash(self) -> str:
        """sha256 over all row hashes in order; it depends on x, y and the order of records, and on
        nothing else.
        """
        return hashlib.sha256(self.row_hash.tobytes()).hexdigest()


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
        self.embedded: int | None = None  # ids below it have an embedding row; None if not known
        check_vocabulary(tokenizer, source, TAGS if template is None else SECTION_TAGS)
        vocabulary = tokenizer.get_vocab()
        self.bos = tokenizer.bos_token_id
        self.eos = tokenizer.eos_token_id
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.z_open, self.z_close = (vocabulary[tag] for tag in SECTION_TAGS)
        template = template or tags_template(tokenizer)
        self._whole = None
        if template.name == CHAT:
            self._whole = WholeText(tokenizer, SECTION_TAGS[1])
        elif template.name == FILE:
            self._whole = WholeText(tokenizer, SECTION_TAGS[1], template.parts[2])
            # as it is behind a special token
            template = replace(template, before_y=self._whole.before_y)
        self.template = template
        # Ids that end a completion; records whose turns end otherwise add theirs.
        self.ends = list(dict.fromkeys([*template.after_y[:1], self.eos]))
        fixed = {self.eos, self.z_open, self.z_close, *template.after_y[:1]}
        around = {*template.before_x, *template.before_z, *template.before_y, *template.after_y}
        self._specials = specials(tokenizer)
        self._reserved = frozenset(
            fixed | (around if template.name == "tags" else around & self._specials)
        )
        # What a template file's texts must not hold, to be tokenised with their surroundings.
        self._special_text = re.compile(
            "|".join(map(re.escape, tokenizer.convert_ids_to_tokens(sorted(self._specials))))
        )

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
            return {
                "name": CHAT,
                "version": VERSION,
                "sha256": hashlib.sha256(content.encode()).hexdigest(),
                **({"settings": f.chat.settings} if f.chat.settings else {}),
            }
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

    @cached_property
    def _inner(self) -> Any:
        """The tokenizer for a text that stands behind another: one that puts a space before the
        first text alone (SentencePiece's, not legacy) puts none.
        """
        state = self.tokenizer.backend_tokenizer.to_str()
        if not re.search(r'"prepend_scheme":\s*"first"', state):
            return None
        from tokenizers import Tokenizer

        inner = Tokenizer.from_str(re.sub(r'("prepend_scheme":\s*)"first"', r'\1"never"', state))
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        return inner

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens of its own."""
        if not texts:
            return []
        # Tags inside a user's text are text: they must not open or close a section.
        if self._inner is not None:
            return _ids_of(self._inner, texts)
        # What other classes do besides is theirs; this one builds masks and offsets that nobody
        # reads, in two thirds of its time.
        method = getattr(type(self.tokenizer), "_encode_plus", None)
        if getattr(method, "__qualname__", "") == "TokenizersBackend._encode_plus":
            backend = self.tokenizer.backend_tokenizer
            backend.no_padding()
            backend.no_truncation()
            split = backend.encode_special_tokens
            backend.encode_special_tokens = True
            try:
                return _ids_of(backend, texts)
            finally:
                backend.encode_special_tokens = split
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def prompt(self, record: Example | str, latent: Sequence[int] | None = None) -> list[int]:
        """Ids up to the start of y; with `latent` (its P ids) including the latent section.

        Args:
            record: x, or a record whose y is not read.

        Raises:
            UserError: x has no token, or one that is a tag; the chat template fails on it.
        """
        row = self._prompt_row(record)
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
        return [*self._prompt_row(record).before_z, self.z_open]

    def _prompt_row(self, record: Example | str) -> TokenRow:
        """The prompt's tokens; raises UserError for a text that cannot be one."""
        example = Example(record, "") if isinstance(record, str) else record
        where = repr(example.x[:60])
        if self.template.chat is not None:
            assert self._whole is not None
            rendered = self.template.chat.render_prompts([example], [where])
            self._check_latent_text(rendered[0].prompt, where)
            return self._whole.prompts(rendered)[0]
        self._check_no_turns(example, where)
        if self._whole is not None and not self._special_text.search(example.x):
            return self._whole.prompts([self.template.render(example)])[0]
        ids = self._tokenise([example.x])[0]
        self._check_text("x", ids, where)
        return self._pieced(ids, [])

    def _pieced(self, x: list[int], y: list[int]) -> TokenRow:
        """x and y tokenised separately from the text around them."""
        t = self.template
        return TokenRow(
            [*t.before_x, *x, *t.before_z],
            t.before_y,
            [*y, *t.after_y[:1]],
            len(t.before_x),
            len(t.before_x) + len(x),
        )

    def take_ends(self, settings: Any) -> None:
        """Under a chat template, the ends that a model's generation config names count too: turns
        may end otherwise than answers do, as calls of tools.
        """
        ends = getattr(settings, "eos_token_id", None)
        if self.template.chat is not None and ends is not None:
            ends = ends if isinstance(ends, list) else [ends]
            self.ends += [id for id in ends if id in self._specials and id not in self.ends]

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
        character gives an empty string.
        """
        pieces = []
        before = ""
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:end]).rstrip("\ufffd")
            pieces.append(text[len(before) :])
            before = text
        return pieces

    def encode(
        self, examples: Iterable[Example], *, max_length: int, source: str, too_long: str = ERROR
    ) -> Encoded:
        """Tokenises all rows in order, a block at a time, without keeping their text.

        Args:
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
        marks = _Marks(source)
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
            prompt_index=_numbered(keys),
            unknown_rows=unknown,
            notes=(*self._template_notes(), *marks.notes(done), *long.notes(done)),
            row_numbers=numbers if long.skipped else None,
            too_long=long.counts(),
        )

    def _encode_block(
        self, block: list[Example], first: int, long: LongRows, source: str, marks: _Marks
    ) -> list[Any]:
        """What a block adds to the fields of `Encoded`, in their order: lengths instead of offsets,
        hashes of the prompt instead of prompt numbers.
        """
        places = [e.where or f"{source}:{row}" for row, e in enumerate(block, start=first + 1)]
        trailing = self.template.after_y[1:] if self.template.name == "tags" else []
        sequences: list[int] = []
        sizes: list[tuple[int, ...]] = []
        hashes = []
        keys = []
        around = len(trailing) + self.latent_section
        unknown_id = self.tokenizer.unk_token_id
        unknown = 0
        whole = zip(self._rows(block, places, marks), places, strict=True)
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

    def _rows(self, block: list[Example], places: list[str], marks: _Marks) -> list[TokenRow]:
        """The tokens of each record, by the way that the template needs."""
        if self._whole is None:
            return self._pieced_rows(block, places)
        if self.template.chat is not None:
            rendered = self.template.chat.render(block, places)
            for one, place in zip(rendered, places, strict=True):
                self._check_latent_text(one.prompt + one.rest, place)
            return self._ended(rendered, places, block)
        return self._file_rows(block, places, marks)

    def _file_rows(self, block: list[Example], places: list[str], marks: _Marks) -> list[TokenRow]:
        """Rows of a template file. Where a text holds that of a special token, the prompt or the
        target is put together from pieces, in which it is plain text.
        """
        for example, place in zip(block, places, strict=True):
            self._check_no_turns(example, place)
        in_x = {row for row, one in enumerate(block) if self._special_text.search(one.x)}
        in_y = {row for row, one in enumerate(block) if self._special_text.search(one.y)}
        apart = sorted(in_x | in_y)
        for row in apart:
            marks.spelled.add(places[row])
        whole = [row for row in range(len(block)) if row not in in_x and row not in in_y]
        rendered = [self.template.render(block[row]) for row in whole]
        ended = self._ended(rendered, [places[r] for r in whole], [block[r] for r in whole])
        rows = dict(zip(whole, ended, strict=True))
        pieced = self._pieced_rows([block[r] for r in apart], [places[r] for r in apart])
        for row, pieces in zip(apart, pieced, strict=True):
            rows[row] = pieces
            if row not in in_x:
                prompt = self._prompt_row(block[row])
                rows[row] = replace(prompt, target=pieces.target)
        return [rows[row] for row in range(len(block))]

    def _pieced_rows(self, block: list[Example], places: list[str]) -> list[TokenRow]:
        """x and y tokenised by themselves and put between the template's tokens."""
        xs = self._tokenise([e.x for e in block])
        ys = self._tokenise([e.y for e in block])
        rows = []
        for example, x, y, place in zip(block, xs, ys, places, strict=True):
            self._check_no_turns(example, place)
            self._check_text("x", x, place)
            self._check_text("y", y, place)
            rows.append(self._pieced(x, y))
        return rows

    def _ended(
        self, rendered: list[Rendered], places: list[str], block: list[Example]
    ) -> list[TokenRow]:
        """The rows with their targets up to and with what ends them."""
        assert self._whole is not None
        ending = self.template.ending
        if ending.text or ending.appended:
            rendered = [_cut_after(one, ending) for one in rendered]
        rows = []
        whole = self._whole.rows(rendered)
        for row, place, example, one in zip(whole, places, block, rendered, strict=True):
            target = self._target(row.target, place, example, one)
            rows.append(replace(row, target=target))
        return rows

    def _target(
        self, ids: list[int], place: str, example: Example, rendered: Rendered
    ) -> list[int]:
        """Ids of y up to the token that ends it.

        Raises:
            UserError: y is empty, or nothing in it ends it.
        """
        ending = self.template.ending
        turn = "the last turn" if example.messages else "field 'y'"
        if ending.text:
            empty = not rendered.rest.removesuffix(ending.text).strip()
        elif ending.appended:
            empty = not ids
            ids = [*ids, self.eos]
        else:
            end = ending.token if ending.token in ids else self._other_end(ids, place)
            ids = ids[: len(ids) - ids[::-1].index(end)]
            empty = len(ids) == 1
            if end in ids[:-1]:
                token = self.tokenizer.convert_ids_to_tokens(end)
                raise UserError(
                    f"{place}: {turn} contains {token}, which ends a turn; rename it in the text"
                )
        if empty:
            raise UserError(f"{place}: {turn} has no token in the vocabulary of {self.source}")
        return ids

    def _other_end(self, ids: list[int], place: str) -> int:
        """The token that ends a turn which does not end as answers do, such as a call of a tool."""
        ends = [id for id in ids if id in self._specials]
        if not ends:
            raise UserError(
                f"{place}: the chat template of {self.source} does not end the last turn by "
                f"{self.tokenizer.convert_ids_to_tokens(self.y_close)} nor by another special "
                "token; give a template that does"
            )
        if ends[-1] not in self.ends:
            self.ends.append(ends[-1])
        return ends[-1]

    def _template_notes(self) -> list[str]:
        """What is unusual about the chat template, a line a fact."""
        chat = self.template.chat
        if chat is not None and chat.header.strip() and not chat.asks:
            return [
                f"{self.source}: its chat template writes no generation prompt, so y begins with "
                f"{chat.header!r}",
                *self._ending_notes(),
            ]
        return self._ending_notes()

    def _ending_notes(self) -> list[str]:
        """What is unusual about how the template ends a turn."""
        if self.template.ending.appended and self.template.name == CHAT:
            return [
                f"{self.source}: its chat template ends no turn; "
                f"{self.tokenizer.eos_token} is added to y"
            ]
        if self.end_text:
            return [
                f"{self.source}: its chat template ends turns by the text {self.end_text!r}, which "
                "is no special token; completions are cut at that text"
            ]
        return []

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

    def _check_latent_text(self, text: str, where: str) -> None:
        """Raises UserError where a text spells a latent token."""
        if found := LATENT_TEXT.search(text):
            raise UserError(
                f"{where}: contains {found[0]}, which spells a latent; rename it in the text"
            )

    def _check_no_turns(self, example: Example, where: str) -> None:
        """Raises UserError for a conversation, which only a chat template can render."""
        if example.messages is not None:
            raise UserError(
                f"{where}: a conversation needs the model's chat template; give --template chat"
            )

    def _check_text(self, field: str, tokens: list[int], where: str) -> None:
        """Raises UserError for a text without tokens, or with one that the model has no row for."""
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


@dataclass
class _Places:
    """Records that something is to be said of: how many, and where the first is."""

    count: int = 0
    first: str = ""

    def add(self, place: str) -> None:
        """Counts a place; the first one is kept for the message."""
        self.first = self.first or place
        self.count += 1


def _cut_after(rendered: Rendered, ending: Ending) -> Rendered:
    """Without what the template writes after the text that ends y."""
    after = ending.text or ending.after
    if not after or after not in rendered.rest:
        return rendered
    end = rendered.rest.rfind(after) + len(ending.text)
    return replace(rendered, rest=rendered.rest[:end])


@dataclass
class _Marks:
    """Records whose ids are not those of the whole text."""

    source: str
    crossed: _Places = field(default_factory=_Places)
    spelled: _Places = field(default_factory=_Places)

    def notes(self, rows: int) -> list[str]:
        """What was unusual about the records, a line a fact.

        Args:
            rows: records that were encoded.
        """
        notes = []
        if self.crossed.count:
            notes.append(
                f"{self.source}: in {self.crossed.count:,} of {rows:,} records (first: "
                f"{self.crossed.first}) the tokenizer joins the end of the prompt with the "
                "beginning of y; there the ids are the prompt's by itself, as at inference, and "
                "those of y by itself"
            )
        if self.spelled.count:
            notes.append(
                f"{self.source}: {self.spelled.count:,} of {rows:,} records (first: "
                f"{self.spelled.first}) hold the text of a special token, which is tokenised as "
                "plain text; do so at inference (split_special_tokens=True)"
            )
        return notes


def _ids_of(backend: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text by a `tokenizers.Tokenizer`."""
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _numbered(keys: np.ndarray) -> np.ndarray:
    """(N,) int64: equal keys share a number, counted from 0 in order of first appearance."""
    first_N = first_of_equal(keys.view(np.uint8).reshape(-1, HASH.itemsize))
    new_N = first_N == np.arange(len(first_N), dtype=first_N.dtype)
    number_N: np.ndarray = np.cumsum(new_N) - 1  # of the rows that are the first of their kind
    of_first_N: np.ndarray = number_N[first_N]
    return of_first_N


def row_hash(x_ids: bytes, y_ids: bytes) -> bytes:
    """`HASH`: 16 bytes over a row's x and y ids; the length of x distinguishes ("ab", "c") from
    ("a", "bc").
    """
    return hashlib.blake2b(
        len(x_ids).to_bytes(8, "little") + x_ids + y_ids, digest_size=HASH.itemsize
    ).digest()
