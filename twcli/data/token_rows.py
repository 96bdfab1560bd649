"""Records become the tokens of a prompt and a target, in the way that their template needs: as the
whole text that a chat template or a file gives, or x and y put between the template's tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from twcli.data.chat import Rendered
from twcli.data.example import Example
from twcli.data.plain_text import PlainText
from twcli.data.template import CHAT, FILE, Ending, Template, specials
from twcli.data.vocabulary import SECTION_TAGS
from twcli.data.whole_text import TokenRow, WholeText
from twcli.errors import UserError

LATENT_TEXT = re.compile(r"</?z>|<z\d+(\.\d+)?>")  # becomes a token in a trained model's vocabulary


class TokenRows:
    """Makes a `TokenRow` of each record, and refuses records whose ids would mean something else.

    Attributes:
        template: as it was given; `before_y` of a file as it is behind a special token.
        ends: ids that end a completion; records whose turns end otherwise add theirs.
        embedded: ids below it have an embedding row; None if not known.
        plain: tokenises texts by themselves.
    """

    def __init__(self, tokenizer: Any, source: str, template: Template) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.plain = PlainText(tokenizer)
        self.embedded: int | None = None
        self.eos = tokenizer.eos_token_id
        self._whole = None
        if template.name == CHAT:
            self._whole = WholeText(tokenizer, SECTION_TAGS[1])
        elif template.name == FILE:
            self._whole = WholeText(tokenizer, SECTION_TAGS[1], template.parts[2])
            # as it is behind a special token
            template = replace(template, before_y=self._whole.before_y)
        self.template = template
        self.ends = list(dict.fromkeys([*template.after_y[:1], self.eos]))
        self._specials = specials(tokenizer)
        vocabulary = tokenizer.get_vocab()
        section = {vocabulary[tag] for tag in SECTION_TAGS}
        around = {*template.before_x, *template.before_z, *template.before_y, *template.after_y}
        if template.name != "tags":
            around &= self._specials
        self._reserved = frozenset({self.eos, *section, *template.after_y[:1], *around})
        # What a template file's texts must not hold, to be tokenised with their surroundings.
        names = tokenizer.convert_ids_to_tokens(sorted(self._specials))
        self._special_text = re.compile("|".join(map(re.escape, names)))

    def of(self, block: list[Example], places: list[str], marks: Marks) -> list[TokenRow]:
        """The tokens of each record, by the way that the template needs."""
        if self._whole is None:
            return self._pieced_rows(block, places)
        if self.template.chat is not None:
            rendered = self.template.chat.render(block, places)
            for one, place in zip(rendered, places, strict=True):
                self._check_latent_text(one.prompt + one.rest, place)
            return self._ended(rendered, places, block)
        return self._file_rows(block, places, marks)

    def prompt(self, record: Example | str) -> TokenRow:
        """The prompt's tokens; raises UserError for a text that cannot be one."""
        if isinstance(record, str):
            example = Example(record, "")
        else:
            example = record
        where = repr(example.x[:60])
        if self.template.chat is not None:
            assert self._whole is not None
            rendered = self.template.chat.render_prompts([example], [where])
            self._check_latent_text(rendered[0].prompt, where)
            return self._whole.prompts(rendered)[0]
        self._check_no_turns(example, where)
        if self._whole is not None and not self._special_text.search(example.x):
            return self._whole.prompts([self.template.render(example)])[0]
        ids = self.plain.tokenise([example.x])[0]
        self._check_text("x", ids, where)
        return self._pieced(ids, [])

    def take_ends(self, settings: Any) -> None:
        """Under a chat template, the ends that a model's generation config names count too: turns
        may end otherwise than answers do, as calls of tools.

        Args:
            settings: a transformers GenerationConfig; its `eos_token_id` is one id, several or
                None.
        """
        ends = getattr(settings, "eos_token_id", None)
        if self.template.chat is None or ends is None:
            return
        if not isinstance(ends, list):
            ends = [ends]
        for end in ends:
            if end in self._specials and end not in self.ends:
                self.ends.append(end)

    def notes(self) -> list[str]:
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
        if text := self.template.ending.text:
            return [
                f"{self.source}: its chat template ends turns by the text {text!r}, which "
                "is no special token; completions are cut at that text"
            ]
        return []

    def _pieced(self, x: list[int], y: list[int]) -> TokenRow:
        """x and y tokenised separately from the text around them."""
        template = self.template
        x_start = len(template.before_x)
        closing = template.after_y[:1]
        return TokenRow(
            [*template.before_x, *x, *template.before_z],
            template.before_y,
            [*y, *closing],
            x_start,
            x_start + len(x),
        )

    def _file_rows(self, block: list[Example], places: list[str], marks: Marks) -> list[TokenRow]:
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
                prompt = self.prompt(block[row])
                rows[row] = replace(prompt, target=pieces.target)
        return [rows[row] for row in range(len(block))]

    def _pieced_rows(self, block: list[Example], places: list[str]) -> list[TokenRow]:
        """x and y tokenised by themselves and put between the template's tokens."""
        xs = self.plain.tokenise([e.x for e in block])
        ys = self.plain.tokenise([e.y for e in block])
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
            if ending.token in ids:
                end = ending.token
            else:
                end = self._other_end(ids, place)
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
            usual = self.tokenizer.convert_ids_to_tokens(self.template.ending.token)
            raise UserError(
                f"{place}: the chat template of {self.source} does not end the last turn by "
                f"{usual} nor by another special token; give a template that does"
            )
        if ends[-1] not in self.ends:
            self.ends.append(ends[-1])
        return ends[-1]

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
            reserved = next(t for t in tokens if t in self._reserved)
            tag = self.tokenizer.convert_ids_to_tokens(reserved)
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


@dataclass
class Marks:
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


def _cut_after(rendered: Rendered, ending: Ending) -> Rendered:
    """Without what the template writes after the text that ends y."""
    after = ending.text or ending.after
    if not after or after not in rendered.rest:
        return rendered
    end = rendered.rest.rfind(after) + len(ending.text)
    return replace(rendered, rest=rendered.rest[:end])
