"""The inputs of every command: a frozen model, its tokenizer and template, and the encoded records;
and the cache that belongs to them.

`precompute`, `discover`, `train`, `eval`, `inspect` and `--dry-run` open them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from twcli.config.inputs import AUTO, PRECISIONS
from twcli.data.dataset import Examples, stream_examples
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.data.long_rows import ERROR
from twcli.errors import UserError, first_difference
from twcli.models import baseline, loading
from twcli.models.runtime import Say, silent
from twcli.storage.cache import Cache
from twcli.storage.cache_format import CACHE

COUNTED = ("latent_tokens", "too_long", "empty")  # of a fingerprint: which rows are left out


@dataclass(frozen=True)
class Inputs:
    """A frozen model and the records that it scores.

    Attributes:
        source: where the model was loaded from, for messages; `data` likewise.
        template: the value of `--template`.
        records: to be read once more by who needs their texts.
        max_length: longest sequence in tokens, latent section included.
        precision: the weights' precision, "fp32" or "bf16".
        chat_settings: variables of the chat template.
    """

    source: str
    data: str
    template: str
    model: PreTrainedModel
    encoder: ExampleEncoder
    encoded: Encoded
    records: Iterable[Example]
    max_length: int
    precision: str
    attention: str
    chat_settings: Mapping[str, Any]

    def fingerprint(self) -> dict[str, Any]:
        """Everything that b_t of these records depends on: weights, tokenizer, template, data,
        lengths, precision and attention.
        """
        return self._fingerprint(self.model, self.precision)

    def open_cache(self, path: str) -> tuple[Cache, dict[str, Any]]:
        """The cache at `path` and its fingerprint; its `dtype` is the precision that it was made
        in, which need not be this one.

        Raises:
            UserError: it is damaged, or of another model, data or setting; the field is named.
        """
        cache = Cache(path)
        made_in = cache.fingerprint.get("dtype")
        precision = made_in if made_in in PRECISIONS else self.precision
        scored = self.model
        if precision != self.precision:
            # weights are hashed as they were when the cache was made
            scored, _ = loading.load_frozen(
                self.source,
                precision=precision,
                attention=self.attention,
                template=self.template,
                chat_settings=self.chat_settings,
            )
        fingerprint = self._fingerprint(scored, precision)
        try:
            cache.check(fingerprint, self.encoded.row_hash)
        except UserError as error:
            differs = first_difference(cache.fingerprint, fingerprint)
            counted = differs is not None and differs[0].split(".")[0] in COUNTED
            same = ", with --too-long, --empty and --latent-tokens as here" if counted else ""
            raise UserError(f"{error}; {CACHE.remedy}{same}") from None
        return cache, fingerprint

    def _fingerprint(self, model: PreTrainedModel, precision: str) -> dict[str, Any]:
        """What b_t of these records depends on, under this model and precision."""
        return baseline.fingerprint(
            model,
            self.encoder,
            self.encoded,
            max_length=self.max_length,
            precision=precision,
            attention=self.attention,
            empty=self.records.left_out if isinstance(self.records, Examples) else 0,
        )


def open_inputs(
    model: str,
    data: str,
    *,
    format: str = AUTO,
    x_field: str = "x",
    y_field: str = "y",
    each_turn: bool = False,
    empty: str = ERROR,
    examples: Iterable[Example] | None = None,
    template: str = "tags",
    precision: str = "fp32",
    attention: str = "sdpa",
    max_length: int | None = None,
    too_long: str = ERROR,
    latent_tokens: int = 1,
    say: Say = silent,
    chat_settings: Mapping[str, Any] | None = None,
) -> Inputs:
    """Loads the model and encodes the records. The model stays on the CPU.

    Args:
        format, x_field, y_field, each_turn, empty: as `stream_examples` takes them.
        examples: the records, where they have been looked at already; else those of `data`.
        max_length: tokens; None for the model's context.
        too_long: as `ExampleEncoder.encode` takes it.
        latent_tokens: vocabulary tokens P that spell one latent.
        say: as in `loading.load_model`; also called with what records there are,
            where `examples` is None.
        chat_settings: variables of the chat template.

    Raises:
        UserError: the model, the template or a record is wrong, or they do not fit together.
    """
    unread = examples is None
    if examples is None:
        examples = stream_examples(
            data,
            format=format,
            x_field=x_field,
            y_field=y_field,
            each_turn=each_turn,
            empty=empty,
        )
    frozen, encoder = loading.load_frozen(
        model,
        precision=precision,
        attention=attention,
        template=template,
        latent_tokens=latent_tokens,
        say=say,
        chat_settings=chat_settings,
    )
    limit = loading.context_length(frozen, max_length)
    encoded = encoder.encode(examples, max_length=limit, source=data, too_long=too_long)
    if unread and isinstance(examples, Examples):
        say(examples.summary())
    for note in encoded.notes:
        say(note)
    # the one that the model has, where it lacks what was asked for
    attention = frozen.config.get_text_config()._attn_implementation
    return Inputs(
        model,
        data,
        template,
        frozen,
        encoder,
        encoded,
        examples,
        limit,
        precision,
        attention,
        chat_settings or {},
    )
