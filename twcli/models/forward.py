"""Runs rows of the data through a model without a gradient: one batch per CPU core and, where
possible, without padding and with each prompt computed once.

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

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import apart, budget_batches, gather_padded, prompt_by_prompt, slices
from twcli.kernels import flash
from twcli.kernels.body import body_of, one_stream
from twcli.kernels.linear import fast_linear
from twcli.kernels.packing import ATTENTION, attention_of, linear_weights, window_of
from twcli.kernels.varlen import Varlen, varlen_hidden_states
from twcli.models.positions import pass_lengths
from twcli.models.runtime import MOST_WORKERS, core_by_core, most_at_once

# 3 MiB in float32: a layer's output fits in a CPU core's cache
CACHED_VALUES = 3 * 2**18
BF16_TOKENS = 4  # times as many in bf16
# 512 MiB in bf16: many tokens per kernel launch, and still little of a GPU's memory
DEVICE_VALUES = 2**28
LEAST_TOKENS, DEVICE_TOKENS = 256, 2**16
FEW = 64  # batches; with more than these, uneven batches hardly leave cores idle


def hidden_states(
    model: PreTrainedModel,
    input_ids_RT: torch.Tensor,
    position_RT: torch.Tensor | None = None,
    *,
    all_layers: bool = False,
) -> Any:
    """Last hidden states (R, T, H); with `all_layers` a pair of these and the tuple of every
    layer's, embeddings first.

    Rows are padded on the right, where a causal model's real tokens never look, so the attention
    backend needs no mask and takes its fast causal path.

    Args:
        position_RT: of the tokens; None for 0, 1, 2 and so on.
    """
    placed = {}
    if position_RT is not None:
        # without a mask, transformers takes a gap between positions for the end of a sequence
        placed = {"position_ids": position_RT, "attention_mask": torch.ones_like(input_ids_RT)}
    output = body_of(model)(
        input_ids=input_ids_RT, use_cache=False, output_hidden_states=all_layers, **placed
    )
    last = output.last_hidden_state
    if not all_layers:
        return last
    return last, tuple(one_stream(states, last.shape) for states in output.hidden_states)


@torch.no_grad()
def keeps_state(model: PreTrainedModel) -> bool:
    """Whether a forward pass leaves tensors of its own in the model's modules, where another one
    that runs at the same time would find them (RecurrentGemma's recurrent states).
    """

    def kept() -> list[torch.Tensor]:
        """The tensors that modules hold as plain attributes after a pass."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        hidden_states(model, ids)
        found = []
        for module in model.modules():
            attributes = vars(module).values()
            found += [value for value in attributes if isinstance(value, torch.Tensor)]
        return found

    before = kept()
    after = kept()
    return [id(tensor) for tensor in before] != [id(tensor) for tensor in after]


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens per batch for the fastest forward pass without a gradient.

    On a CPU, with more tokens a layer's output exceeds the cache, with fewer its matrix products
    are slow; in bf16 these are fast only with more. Other devices need many tokens.
    """
    widest = max(max(w.shape) for w in linear_weights(model))
    if model.device.type != "cpu":
        return min(DEVICE_TOKENS, max(LEAST_TOKENS, DEVICE_VALUES // widest))
    values = CACHED_VALUES
    if model.dtype == torch.bfloat16:
        values *= BF16_TOKENS
    return max(LEAST_TOKENS, values // widest)


def forward_rows(
    model: PreTrainedModel,
    encoded: Encoded,
    rows: np.ndarray,
    read: Callable[..., Any],
    *,
    batch_tokens: int,
    varlen: bool = False,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Calls `read(rows, varlen=)` for batches of `rows`, longest first, so that a lack of memory
    shows at once. On a CPU each core processes its own batches.

    Args:
        varlen: run rows without padding, with each prompt computed once for all its completions;
            only if `why_not_varlen` returned None. Within `read` the model's attention is then
            `packing.ATTENTION`.

    Yields:
        (positions of the batch in `rows`, which are distinct; the result of `read`).
    """
    model.eval()
    order = np.argsort(rows)
    padded = ~(varlen & within_window(model, encoded.lengths[rows]))
    on_cpu = model.device.type == "cpu"
    lengths = pass_lengths(model)
    classes = lengths.classes(encoded.lengths)
    # what depends on the pass is kept in the model while it runs
    alone = bool(lengths) or (most_at_once(model.device) > 1 and keeps_state(model))
    with fast_linear(model, pack=True):
        for packed, cut, those in (
            (False, _by_length, rows[padded]),
            (True, _by_prompt, rows[~padded]),
        ):
            batches = []
            for together in apart(those, classes) if lengths else [those]:
                batches += (
                    _evenly(partial(cut, encoded, together), batch_tokens)
                    if on_cpu
                    else cut(encoded, together, batch_tokens)
                )
            with attention_of(model, ATTENTION) if packed else nullcontext():
                read_those = core_by_core(
                    partial(read, varlen=packed), batches, model.device, alone=alone
                )
                for batch, found in zip(batches, read_those, strict=True):
                    yield order[np.searchsorted(rows, batch, sorter=order)], found


def read_lengths(model: PreTrainedModel, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """(R,) tokens of `rows` that a pass for b_t needs: up to the one that predicts the last target;
    all of them if the pass's length changes its result.
    """
    if pass_lengths(model):
        return encoded.lengths[rows]
    return encoded.prompt_lengths[rows] + encoded.target_lengths[rows]


def within_window(model: PreTrainedModel, lengths_R: np.ndarray) -> np.ndarray:
    """(R,) which rows fit in the model's sliding window, if it has one; packed rows cannot each
    have their own window.
    """
    return lengths_R <= (window_of(model) or np.inf)


def _evenly(cut: Callable[[int], list[np.ndarray]], batch_tokens: int) -> list[np.ndarray]:
    """Batches by `cut`, at most `batch_tokens` each. If they are few, they are made about equally
    large, and their number is a multiple that suits any number of cores, so that no core is idle at
    the end.
    """
    batches = cut(batch_tokens)
    if not 2 < len(batches) <= FEW:
        return batches
    if len(batches) <= 4:
        count = 4
    else:
        count = -(-len(batches) // MOST_WORKERS) * MOST_WORKERS
    least = 1
    most = batch_tokens
    while least < most:  # the smallest budget that gives at most `count` batches
        middle = (least + most) // 2
        if len(cut(middle)) <= count:
            least, most = (least, middle)
        else:
            least, most = (middle + 1, most)
    return cut(most)


def _by_length(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Batches of rows of about one length, the longest first."""
    lengths = encoded.prompt_lengths[rows] + encoded.target_lengths[rows]
    longest_first = np.argsort(-lengths, kind="stable")
    batches = budget_batches(lengths, longest_first, batch_tokens)
    return [rows[places] for places in batches]


def _by_prompt(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Batches of at most `batch_tokens` tokens, at least one row each; a prompt counts once per
    batch; longest first.
    """
    if not len(rows):
        return []
    rows = rows[prompt_by_prompt(encoded.lengths[rows], encoded.prompt_index[rows])]
    batches = []
    start = 0
    last = -1
    tokens = 0
    columns = encoded.prompt_index[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    for stop, (this, length, targets) in enumerate(zip(*columns, strict=True)):
        more = targets + length * (this != last)
        if stop > start and tokens + more > batch_tokens:
            batches.append(rows[start:stop])
            start = stop
            tokens = 0
            more = targets + length
        tokens += more
        last = this
    return [*batches, rows[start:]]


@dataclass(frozen=True)
class Layout:
    """The layout of R rows in a forward pass: padded (R, T), or concatenated (N,) with each prompt
    once.

    Attributes:
        input_ids: (R, T) or (N,).
        varlen: None if padded.
        prompt_R, rest_R: first position of each row's prompt, and of the tokens after it, in the
            flattened pass.
        lengths_R, prompt_lengths_R: tokens of each row, and of its prompt, in the pass.
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
        encoder: ExampleEncoder,
        encoded: Encoded,
        rows: np.ndarray,
        lengths_R: np.ndarray,
        *,
        varlen: bool,
    ) -> Layout:
        """The layout of the first tokens of each row.

        Args:
            rows: (R,) row numbers.
            lengths_R: tokens that are read of each.
            varlen: whether the rows lie one after the other, without padding.
        """
        starts = encoded.offsets[rows]
        prompts = encoded.prompt_lengths[rows]
        if not varlen:
            ids = gather_padded(encoded.ids, starts, lengths_R, encoder.pad)
            first = np.arange(len(rows)) * ids.shape[1]
            return cls(ids_on(model, ids), None, first, first + prompts, lengths_R, prompts)
        _, leaders, prompt = np.unique(
            encoded.prompt_index[rows], return_index=True, return_inverse=True
        )
        order = np.argsort(prompt, kind="stable")
        rests = lengths_R - prompts
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
        """Last hidden states, flattened to (.., H); with `all_layers` a pair of these and the tuple
        of every layer's.
        """
        if self.varlen is not None:
            return varlen_hidden_states(model, self.input_ids, self.varlen, all_layers=all_layers)
        if not all_layers:
            return hidden_states(model, self.input_ids).flatten(0, 1)
        last, layers = hidden_states(model, self.input_ids, all_layers=True)
        return last.flatten(0, 1), tuple(layer.flatten(0, 1) for layer in layers)

    def places(self, columns_RC: np.ndarray) -> torch.Tensor:
        """(R, C) positions in `hidden` of the rows' tokens `columns_RC`; beyond a row's end, its
        last token.
        """
        columns = np.minimum(columns_RC, self.lengths_R[:, None] - 1)
        behind = columns - self.prompt_lengths_R[:, None]
        places = np.where(
            behind < 0, self.prompt_R[:, None] + columns, self.rest_R[:, None] + behind
        )
        return torch.from_numpy(places).to(self.input_ids.device)


def ids_on(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """Token ids of any shape (..) as an int64 tensor (..) on the model's device, whatever integers
    they are stored as.
    """
    wide = ids.astype(np.int64)
    tensor = torch.from_numpy(wide)
    return tensor.to(model.device)
