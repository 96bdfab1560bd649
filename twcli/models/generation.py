"""Completes prompts in batches, with the KV cache, by transformers' `generate`. A model whose cache
gives other logits than its plain forward pass, or none, reads the whole row for each new token.

Shapes: G prompts, K latents, R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import apart, budget_batches, gather_padded
from twcli.kernels.head import head_logits
from twcli.kernels.linear import fast_linear
from twcli.models.agreement import SHARE, why_not
from twcli.models.forward import hidden_states, ids_on
from twcli.models.positions import pass_lengths

COMPARED_TOKENS = 2  # new ones, the second from the cache
LEAST_PROBED, MOST_PROBED = 8, 256  # tokens of a prompt; a shorter one is repeated
# Of a mixture in bf16 passes of other shapes may take other experts.
MOST_APART = {**SHARE, torch.bfloat16: 0.3}

_reasons: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def generate(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | np.ndarray,
    temperature: float,
    seed: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[bool]]:
    """Completes prompts. Arguments as in `generate_ids`.

    Args:
        prompts: P lists of token ids.
        max_new_tokens: one number of tokens, or (P,) one for each prompt.

    Returns:
        One completion text for each prompt, in order, and whether it ended by itself (or was cut
        off).
    """
    written, ended = generate_ids(
        model,
        encoder,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return [encoder.decode(ids) for ids in written], ended


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | np.ndarray,
    temperature: float,
    seed: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[list[int]], list[bool]]:
    """The new token ids of one completion for each prompt of token ids, in order, padding behind
    the end token included, and whether it ended by itself (or was cut off).

    Args:
        max_new_tokens: one limit, or (G,) limits for each prompt.
        temperature: 0 is greedy; else samples from the full distribution, with a separate random
            generator.
        batch_tokens: maximum tokens per batch, new ones included.
        progress: called with the number of completions after each batch.
    """
    together = pass_lengths(model)
    cached = why_not_cached(model, encoder, prompts) is None
    most = np.broadcast_to(np.asarray(max_new_tokens, np.int64), len(prompts))
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    left = np.arange(len(prompts))
    with (
        torch.random.fork_rng(devices=_cuda_devices(model)),
        _own_settings(model),
        fast_linear(model, pack=True),
    ):
        torch.manual_seed(seed)
        while len(left):
            begun = [prompts[row] + written[row] for row in left.tolist()]
            limits = most[left] - [len(written[row]) for row in left.tolist()]
            lengths_G = np.asarray([len(ids) for ids in begun], np.int64)
            # beyond it a row is read again, as a row of its new class
            limits = np.minimum(limits, together.new_tokens(lengths_G))
            going = []
            # All rows of a batch get the same number of new tokens, the smallest limit among them;
            # rows with a larger limit continue in a later batch.
            for batch, completions in _written(
                model, encoder, begun, limits, temperature, batch_tokens, cached
            ):
                for row, ids in zip(left[batch], completions, strict=True):
                    written[row] += ids
                    ended[row] = encoder.ended(ids)
                more = [
                    row
                    for row in left[batch].tolist()
                    if not ended[row] and len(written[row]) < most[row]
                ]
                going += more
                if progress:
                    progress(len(batch) - len(more))
            left = np.asarray(going, np.int64)
    return written, ended


@torch.no_grad()
def why_not_cached(
    model: PreTrainedModel, encoder: ExampleEncoder, prompts: Sequence[list[int]]
) -> str | None:
    """Why the model cannot complete prompts from a cache, None if it can: two tokens behind the
    longest prompt and its first half, which has padding on its left, must have the logits of the
    plain forward pass. Asked once of a model.
    """
    if model not in _reasons:
        longest = max(prompts, key=len)
        longest = (longest * LEAST_PROBED)[: max(len(longest), LEAST_PROBED)][:MOST_PROBED]
        rows = [longest, longest[: (len(longest) + 1) // 2]]
        rule = pass_lengths(model)
        if rule and len(set(rule.classes(np.asarray([len(row) for row in rows])).tolist())) > 1:
            rows = rows[:1]
        limits = int(rule.new_tokens(np.asarray([len(longest)]))[0])
        settings = GenerationConfig(
            max_new_tokens=min(COMPARED_TOKENS, limits),
            do_sample=False,
            pad_token_id=encoder.pad,
            bos_token_id=encoder.bos,
        )

        def difference() -> float:
            ids, mask = padded_left(rows, encoder.pad)
            with _own_settings(model):
                output = model.generate(
                    input_ids=ids_on(model, ids),
                    attention_mask=ids_on(model, mask),
                    generation_config=settings,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            found = torch.stack(output.logits, dim=1)
            apart_R = []
            new_ids = output.sequences[:, ids.shape[1] :].tolist()
            for row, new, logits in zip(rows, new_ids, found, strict=True):
                whole = torch.tensor([[*row, *new[:-1]]], device=model.device)
                states = hidden_states(model, whole)
                plain = head_logits(model, states[0, -len(new) :]).float()
                distance = (logits - plain).norm()
                apart_R.append(float(distance / plain.norm()))
            return float(np.max(apart_R))  # NaN where one is

        most = MOST_APART[model.dtype]
        _reasons[model] = why_not("generation from a cache", difference, most, "of the logits")
    return _reasons[model]


def padded_left(rows: Sequence[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 (R, T) ids and their mask, 1 where they are no padding: new tokens are appended on the
    right, so rows are padded on the left.
    """
    T = max(len(row) for row in rows)
    ids = np.full((len(rows), T), pad, np.int64)
    mask = np.zeros((len(rows), T), np.int64)
    for i, row in enumerate(rows):
        ids[i, T - len(row) :] = row
        mask[i, T - len(row) :] = 1
    return ids, mask


def _written(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    prompts: Sequence[list[int]],
    limits: np.ndarray,
    temperature: float,
    batch_tokens: int,
    cached: bool,
) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
    """(positions of a batch's rows in the prompts, their new ids): up to the end token or the
    smallest `limits` of the batch.
    """
    lengths = np.asarray([len(ids) for ids in prompts], np.int64)
    tokens = lengths + limits
    write = _from_cache if cached else _plainly
    for batch in _batches(model, lengths, tokens, batch_tokens):
        rows = [prompts[row] for row in batch.tolist()]
        most = int(limits[batch].min())
        yield batch, write(model, encoder, rows, most, temperature)


def _from_cache(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    rows: Sequence[list[int]],
    most: int,
    temperature: float,
) -> list[list[int]]:
    """Ids that `generate` writes after rows of one batch, by a cache of keys and values."""
    settings = GenerationConfig(
        max_new_tokens=most,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0,
        eos_token_id=encoder.ends,
        pad_token_id=encoder.pad,
        bos_token_id=encoder.bos,
    )
    ids, mask = padded_left(rows, encoder.pad)
    output = model.generate(
        input_ids=ids_on(model, ids),
        attention_mask=ids_on(model, mask),
        generation_config=settings,
        stopping_criteria=[_StopsAtText(encoder, ids.shape[1])] if encoder.end_text else None,
    )
    written: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return written


def _plainly(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    rows: Sequence[list[int]],
    most: int,
    temperature: float,
) -> list[list[int]]:
    """As `_from_cache`, by a forward pass over the whole rows, padded on the right, for each
    token.
    """
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    number = torch.arange(len(rows), device=model.device)
    ids = torch.full((len(rows), int(lengths.max()) + most), encoder.pad, device=model.device)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, device=model.device)
    written: list[list[int]] = [[] for _ in rows]
    going = [True] * len(rows)
    for _ in range(most):
        hidden = hidden_states(model, ids[:, : int(lengths.max())])[number, lengths - 1]
        logits = head_logits(model, hidden).float()
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
        else:
            chosen = logits.argmax(-1)
        ids[number, lengths] = chosen
        lengths = lengths + 1
        for row, token in enumerate(chosen.tolist()):
            written[row].append(token if going[row] else encoder.pad)
            going[row] = going[row] and not encoder.ended(written[row])
        if not any(going):
            break
    return written


class _StopsAtText(StoppingCriteria):
    """Ends the rows whose new tokens spell the text that ends y, where no token does."""

    def __init__(self, encoder: ExampleEncoder, prompt_length: int) -> None:
        self._encoder = encoder
        self._prompt_length = prompt_length
        # bytes are the shortest tokens
        self._last = 2 * len(encoder.end_text.encode())

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **_settings: object
    ) -> torch.Tensor:
        new = input_ids[:, self._prompt_length :]
        written = new[:, -self._last :]
        ended = [self._encoder.ended(ids) for ids in written.tolist()]
        return torch.tensor(ended, device=input_ids.device)


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the checkpoint's generation config, such as top-k or a repetition penalty, is
    disabled: transformers would use it for settings that a call leaves open.
    """
    theirs = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


@torch.no_grad()
def router_probabilities(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    prompts: Sequence[list[int]],
    latent_ids: list[list[int]],
    *,
    batch_tokens: int,
) -> np.ndarray:
    """The router p(z|x) (G, K), float32, for prompts of ids from `ExampleEncoder.router_prompt`.

    Args:
        latent_ids: P ids of each latent; only the first one is scored.
    """
    first_ids = [ids[0] for ids in latent_ids]
    result = np.empty((len(prompts), len(latent_ids)), np.float32)
    flat = np.concatenate(prompts)
    lengths = np.asarray([len(p) for p in prompts], np.int64)
    starts = np.cumsum(lengths) - lengths
    for batch in _batches(model, lengths, lengths, batch_tokens):
        ids = torch.from_numpy(
            gather_padded(flat, starts[batch], lengths[batch], encoder.pad).astype(np.int64)
        )
        hidden = hidden_states(model, ids.to(model.device))
        last = hidden[torch.arange(len(batch)), torch.from_numpy(lengths[batch] - 1)]
        result[batch] = head_logits(model, last)[:, first_ids].float().softmax(-1).cpu().numpy()
    return result


def _batches(
    model: PreTrainedModel, lengths: np.ndarray, tokens: np.ndarray, batch_tokens: int
) -> Iterator[np.ndarray]:
    """Row numbers of each batch, longest first: rows whose `lengths` may share a pass, within the
    budget by their `tokens`.
    """
    order = np.argsort(-lengths, kind="stable")
    together = pass_lengths(model)
    parts = [order]
    if together:
        parts = apart(order, together.classes(lengths))
    for part in parts:
        yield from budget_batches(tokens, part, batch_tokens)


def _cuda_devices(model: PreTrainedModel) -> list[int]:
    """Where random numbers are drawn besides the CPU."""
    if model.device.type != "cuda":
        return []
    return [model.device.index or 0]
