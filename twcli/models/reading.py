"""Rows of the data through a model without a gradient: a batch a core, and where that is possible
no padding and no prompt twice.

Shapes: R rows, C columns, T tokens of a padded row, N tokens of all rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.data.padding import budget_batches, gather_padded, prompt_by_prompt, slices
from twcli.data.template import Encoded, Template
from twcli.kernels import flash
from twcli.kernels.linear import fast_linear
from twcli.kernels.packing import ATTENTION, attention_of, linear_weights, window_of
from twcli.kernels.varlen import Varlen, varlen_hidden_states
from twcli.models.runtime import MOST_WORKERS, core_by_core

# 3 MiB in float32: what one layer hands to the next stays in a CPU core's cache
CACHED_VALUES = 3 * 2**18
# 512 MiB in bf16: many tokens to every kernel that is started, and still little of a GPU's memory
DEVICE_VALUES = 2**28
LEAST_TOKENS, DEVICE_TOKENS = 256, 2**16
FEW = 64  # batches, of which one more or less still leaves cores idle


def hidden_states(
    model: PreTrainedModel, input_ids_RT: torch.Tensor, *, all_layers: bool = False
) -> Any:
    """Last hidden states (R, T, H), or with `all_layers` the tuple of every
    layer's, embeddings first.

    Rows are padded on the right, where a causal model's real tokens never look, so no mask is
    needed and the attention backend takes its fast causal path.
    """
    output = model.base_model(
        input_ids=input_ids_RT, use_cache=False, output_hidden_states=all_layers
    )
    return output.hidden_states if all_layers else output.last_hidden_state


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens a batch that the model reads fastest without a gradient.

    On a CPU more of them make every layer's output leave the cache, fewer make its matrix products
    slow; other devices want many.
    """
    widest = max(max(w.shape) for w in linear_weights(model))
    if model.device.type != "cpu":
        return min(DEVICE_TOKENS, max(LEAST_TOKENS, DEVICE_VALUES // widest))
    return max(LEAST_TOKENS, CACHED_VALUES // widest)


def read_rows(
    model: PreTrainedModel,
    encoded: Encoded,
    rows: np.ndarray,
    read: Callable[..., Any],
    *,
    batch_tokens: int,
    varlen: bool = False,
) -> Iterator[tuple[np.ndarray, Any]]:
    """`read(rows, varlen=)` of batches of `rows`, longest first so that the largest is met at once;
    on a CPU each core reads batches of its own.

    Args:
        varlen: whether rows may be read without padding and a prompt once for all its completions;
            only where `why_not_varlen` has nothing against it. Within `read` the model's attention
            is then `packing.ATTENTION`.

    Yields:
        (places of the batch among `rows`, which are distinct; what `read` gave).
    """
    model.eval()
    order = np.argsort(rows)
    padded = ~(varlen & within_window(model, encoded.lengths[rows]))
    on_cpu = model.device.type == "cpu"
    with fast_linear(model, pack=True):
        for packed, cut, those in (
            (False, _by_length, rows[padded]),
            (True, _by_prompt, rows[~padded]),
        ):
            batches = (
                _evenly(partial(cut, encoded, those), batch_tokens)
                if on_cpu
                else cut(encoded, those, batch_tokens)
            )
            with attention_of(model, ATTENTION) if packed else nullcontext():
                read_those = core_by_core(
                    partial(read, varlen=packed), batches, model.device, alone=_keeps_state(model)
                )
                for batch, found in zip(batches, read_those, strict=True):
                    yield order[np.searchsorted(rows, batch, sorter=order)], found


def within_window(model: PreTrainedModel, lengths_R: np.ndarray) -> np.ndarray:
    """(R,) which are no longer than a sliding window, where the model has one: it would have to
    slide in each row for itself.
    """
    return lengths_R <= (window_of(model) or np.inf)


def _keeps_state(model: PreTrainedModel) -> bool:
    """Whether a pass changes the model: some position embeddings adapt to the
    longest sequence that was seen.
    """
    return any(
        kind in str(getattr(module, "rope_type", ""))
        for module in model.modules()
        for kind in ("dynamic", "longrope")
    )


def _evenly(cut: Callable[[int], list[np.ndarray]], batch_tokens: int) -> list[np.ndarray]:
    """Few batches are of about the same size and as many for each core, whichever number of cores
    there is, so that none waits for the last ones; many are as `cut` makes them from
    `batch_tokens`, which is never exceeded.
    """
    batches = cut(batch_tokens)
    if not 2 < len(batches) <= FEW:
        return batches
    count = 4 if len(batches) <= 4 else -(-len(batches) // MOST_WORKERS) * MOST_WORKERS
    least, most = 1, batch_tokens
    while least < most:  # the smallest budget that makes no more than `count`
        middle = (least + most) // 2
        least, most = (least, middle) if len(cut(middle)) <= count else (middle + 1, most)
    return cut(most)


def _by_length(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    lengths = encoded.prompt_lengths[rows] + encoded.target_lengths[rows]
    return [
        rows[places]
        for places in budget_batches(lengths, np.argsort(-lengths, kind="stable"), batch_tokens)
    ]


def _by_prompt(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Batches of at most `batch_tokens` tokens, at least one row each, in which a prompt
    counts once; longest first.
    """
    if not len(rows):
        return []
    rows = rows[prompt_by_prompt(encoded.lengths[rows], encoded.prompt_index[rows])]
    batches, start, last, tokens = [], 0, -1, 0
    columns = encoded.prompt_index[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    for stop, (this, length, targets) in enumerate(zip(*columns, strict=True)):
        more = targets + length * (this != last)
        if stop > start and tokens + more > batch_tokens:
            batches.append(rows[start:stop])
            start, tokens, more = stop, 0, targets + length
        tokens, last = tokens + more, this
    return [*batches, rows[start:]]


@dataclass(frozen=True)
class Layout:
    """Where R rows lie in a pass: padded (R, T), or one after another (N,) with each prompt once.

    Attributes:
        input_ids: (R, T) or (N,).
        varlen: None where padded.
        prompt_R, rest_R: where in the pass, flattened, each row's prompt
            begins and what follows it.
        lengths_R, prompt_lengths_R: tokens that are read of each row and of its prompt.
    """

    input_ids: torch.Tensor
    varlen: Varlen | None
    prompt_R: np.ndarray
    rest_R: np.ndarray
    lengths_R: np.ndarray
    prompt_lengths_R: np.ndarray

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        template: Template,
        encoded: Encoded,
        rows: np.ndarray,
        lengths_R: np.ndarray,
        *,
        varlen: bool,
    ) -> Layout:
        """Of the first `lengths_R` tokens of `rows`."""
        starts, prompts = encoded.offsets[rows], encoded.prompt_lengths[rows]
        if not varlen:
            ids = gather_padded(encoded.ids, starts, lengths_R, template.pad)
            first = np.arange(len(rows)) * ids.shape[1]
            return cls(ids_on(model, ids), None, first, first + prompts, lengths_R, prompts)
        _, leaders, prompt = np.unique(
            encoded.prompt_index[rows], return_index=True, return_inverse=True
        )
        order, rests = np.argsort(prompt, kind="stable"), lengths_R - prompts
        sequences = np.concatenate([prompts[leaders], rests[order]])
        ids = encoded.ids[
            slices(np.concatenate([starts[leaders], (starts + prompts)[order]]), sequences)
        ]
        first = np.cumsum(sequences) - sequences
        layout = Varlen.of(
            prompts[leaders], prompt[order], rests[order], model.device, kernels=flash.usable(model)
        )
        return cls(
            ids_on(model, ids),
            layout,
            first[prompt],
            first[len(leaders) :][np.argsort(order)],
            lengths_R,
            prompts,
        )

    def hidden(self, model: PreTrainedModel, *, all_layers: bool = False) -> Any:
        """Last hidden states, one token after another (.., H), or the tuple of every layer's."""
        if self.varlen is not None:
            return varlen_hidden_states(model, self.input_ids, self.varlen, all_layers=all_layers)
        states = hidden_states(model, self.input_ids, all_layers=all_layers)
        return (
            tuple(layer.flatten(0, 1) for layer in states) if all_layers else states.flatten(0, 1)
        )

    def places(self, columns_RC: np.ndarray) -> torch.Tensor:
        """(R, C) where tokens of the rows lie in `hidden`; beyond a row's end its last one."""
        columns = np.minimum(columns_RC, self.lengths_R[:, None] - 1)
        behind = columns - self.prompt_lengths_R[:, None]
        places = np.where(
            behind < 0, self.prompt_R[:, None] + columns, self.rest_R[:, None] + behind
        )
        return torch.from_numpy(places).to(self.input_ids.device)


def ids_on(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """Ids, int64, where the model is."""
    return torch.from_numpy(ids.astype(np.int64)).to(model.device)
