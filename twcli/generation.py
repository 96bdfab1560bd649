"""Prompts become completions: batched, with the KV cache, by transformers' own `generate`.

Shapes: G prompts, K latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from twcli.head import head_logits
from twcli.padding import budget_batches, gather_padded
from twcli.reading import hidden_states
from twcli.template import Template


@torch.no_grad()
def generate(model: PreTrainedModel, template: Template, prompts: Sequence[list[int]], *, max_new_tokens: int,
             temperature: float, seed: int, batch_tokens: int, progress: Callable[[int], None] | None = None) -> list[str]:
    """One completion text for each prompt of token ids, in order.

    Args:
        temperature: 0 is greedy; else samples from the full distribution with a generator of its own.
        batch_tokens: tokens a batch, new ones included.
        progress: called with the number of completions after each batch.
    """
    lengths = np.asarray([len(p) for p in prompts], np.int64)
    texts = [""] * len(prompts)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature > 0, temperature=temperature or None, top_k=None,
        eos_token_id=[template.y_close, template.eos], pad_token_id=template.pad, bos_token_id=template.bos)
    flat, starts = np.concatenate(prompts).astype(np.int64), np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        for batch in budget_batches(lengths + max_new_tokens, order, batch_tokens):
            ids = gather_padded(flat, starts[batch], lengths[batch], template.pad)
            pads = ids.shape[1] - lengths[batch]  # generation continues on the right, so prompts are padded on the left
            columns = np.arange(ids.shape[1]) - pads[:, None]
            mask = columns >= 0
            ids = np.where(mask, np.take_along_axis(ids, np.maximum(columns, 0), axis=1), template.pad)
            output = model.generate(input_ids=torch.from_numpy(ids).to(model.device),
                                    attention_mask=torch.from_numpy(mask.astype(np.int64)).to(model.device),
                                    generation_config=settings)
            for row, completion in zip(batch, output[:, ids.shape[1]:].tolist(), strict=True):
                texts[row] = template.decode(completion)
            if progress:
                progress(len(batch))
    return texts


@torch.no_grad()
def router_probabilities(model: PreTrainedModel, template: Template, prompts: Sequence[list[int]],
                         latent_ids: list[list[int]], *, batch_tokens: int) -> np.ndarray:
    """p(z|x) (G, K) float32 for prompts of ids as `Template.router_prompt` gives them.

    Args:
        latent_ids: P ids of each latent, of which the first are compared.
    """
    first_ids = [ids[0] for ids in latent_ids]
    result = np.empty((len(prompts), len(latent_ids)), np.float32)
    flat = np.concatenate(prompts)
    lengths = np.asarray([len(p) for p in prompts], np.int64)
    starts = np.cumsum(lengths) - lengths
    for batch in budget_batches(lengths, np.argsort(-lengths, kind="stable"), batch_tokens):
        ids = torch.from_numpy(gather_padded(flat, starts[batch], lengths[batch], template.pad).astype(np.int64))
        hidden = hidden_states(model, ids.to(model.device))
        last = hidden[torch.arange(len(batch)), torch.from_numpy(lengths[batch] - 1)]
        result[batch] = head_logits(model, last)[:, first_ids].float().softmax(-1).cpu().numpy()
    return result


def _cuda_devices(model: PreTrainedModel) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []
