"""Rendered text becomes token ids, prompt and target apart, as inference has them.

The prompt's ids are those of its text alone. The target's are those that the text of both has
behind them, so that a SentencePiece tokenizer puts no space of its own between the two. Where the
tokenizer joins the end of one with the beginning of the other, the target is tokenised as the
continuation of other text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from twcli.data.chat import Rendered

# Texts that the target is tokenised behind, where it cannot be behind its own prompt.
ANCHORS: tuple[str, ...] = ("\n", ".", "a", "1")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The ids of one record.

    Attributes:
        before_z: up to where the latent section may stand.
        before_y: between it and y.
        target: y and what ends it, all supervised; empty for a prompt.
        x_start, x_stop: tokens of `before_z` that hold x.
        kept: whether the three parts together are the tokens of the whole text.
    """

    before_z: list[int]
    before_y: list[int]
    target: list[int]
    x_start: int
    x_stop: int
    kept: bool = True


class WholeText:
    """Tokenises whole texts of one tokenizer.

    Args:
        before_y: text between the latent section and y.
        after_z: a special token's text, such as that which closes the latent section.
    """

    def __init__(self, tokenizer: Any, after_z: str, before_y: str = "") -> None:
        self._tokenizer = tokenizer
        self._after_z = after_z
        self._between = before_y
        between, of_a_letter = self._tokenise([after_z + before_y, after_z + "a"])
        self.before_y: list[int] = between[1:]
        begun = tokenizer.convert_ids_to_tokens(of_a_letter[1:])
        # Some tokenizers begin each text after a special token with a space.
        self._adds_space = bool(begun) and begun[0][:1] in ("▁", "Ġ")

    def prompts(self, rendered: Sequence[Rendered]) -> list[TokenRow]:
        """The prompts alone."""
        keys = [(one.prompt, one.x_start, one.x_stop) for one in rendered]
        fresh = list(dict.fromkeys(keys))
        if not fresh:
            return []
        known: dict[tuple[str, int, int], TokenRow] = {}
        batch = self._tokenizer([text for text, _, _ in fresh], add_special_tokens=False)
        for number, (text, start, stop) in enumerate(fresh):
            ids = batch["input_ids"][number]
            first = 0
            last = len(ids)
            if (start, stop) != (0, len(text)):
                begin = batch.char_to_token(number, start)
                end = batch.char_to_token(number, stop - 1)
                if begin is not None and end is not None:
                    first = begin
                    last = end + 1
            known[text, start, stop] = TokenRow(ids, self.before_y, [], first, last)
        return [known[key] for key in keys]

    def rows(self, rendered: Sequence[Rendered]) -> list[TokenRow]:
        """Prompts and targets; the target is all that follows the prompt."""
        wholes = self._tokenise([one.prompt + one.rest for one in rendered])
        rows = []
        for row, ids in zip(self.prompts(rendered), wholes, strict=True):
            prompt = [*row.before_z, *row.before_y]
            kept = ids[: len(prompt)] == prompt
            target = ids[len(prompt) :] if kept else []
            rows.append(replace(row, target=target, kept=kept))
        crossed = [number for number, row in enumerate(rows) if not row.kept]
        targets = self._continued([rendered[number].rest for number in crossed])
        for number, target in zip(crossed, targets, strict=True):
            rows[number] = replace(rows[number], target=target)
        return rows

    def _continued(self, rests: list[str]) -> list[list[int]]:
        """Ids of targets, each of which begins with the text before y, behind text that they do not
        merge with.
        """
        anchors = ANCHORS
        if not self._adds_space or self.before_y:
            anchors = (self._after_z, *ANCHORS)
        found: list[list[int] | None] = [None] * len(rests)
        for anchor in anchors:
            left = [number for number, ids in enumerate(found) if ids is None]
            if not left:
                break
            before, *both = self._tokenise([anchor, *(anchor + rests[number] for number in left)])
            before = [*before, *self.before_y]
            for number, ids in zip(left, both, strict=True):
                if ids[: len(before)] == before:
                    found[number] = ids[len(before) :]
        targets = []
        for continued, rest in zip(found, rests, strict=True):
            if continued is not None:
                targets.append(continued)
            else:
                targets += self._tokenise([rest.removeprefix(self._between)])
        return targets

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without the tokenizer's own marks around it."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids
