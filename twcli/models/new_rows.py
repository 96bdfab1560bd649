"""The embedding rows of the latents' tokens: their initialisation, and training only them with a
frozen backbone.

Shapes: K latents of P tokens, H hidden size.
"""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel


def grow_embeddings(backbone: PreTrainedModel, needed: int) -> None:
    """Gives embeddings and LM head `needed` rows, if they have fewer; each new row is the mean of
    the old ones, so that an id between the tokenizer's that nothing uses has no random logit.

    Tables of whole numbers with a row for each token, such as the experts that it is sent to
    (DeepSeek-V4's hash routing), grow as well: their first rows once more.
    """
    old = backbone.get_input_embeddings().num_embeddings
    if needed <= old:
        return
    # all new rows are given below, and some families' own initialisation fails here (xLSTM)
    backbone._init_weights = lambda _module: None
    try:
        backbone.resize_token_embeddings(needed, mean_resizing=False)
    finally:
        del backbone._init_weights
    with torch.no_grad():
        for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
            for table in (layer.weight, getattr(layer, "bias", None)):
                if table is not None:
                    table[old:] = table[:old].double().mean(0).to(table.dtype)
    for module in backbone.modules():
        for name, table in module.named_buffers(recurse=False):
            if table.ndim and len(table) == old and not table.is_floating_point():
                setattr(module, name, table[torch.arange(needed, device=table.device) % old])
    if getattr(backbone.config, "decoder_vocab_size", None) == old:  # Marian's name for its own
        backbone.config.decoder_vocab_size = needed


def add_latent_rows(
    backbone: PreTrainedModel, latent_ids: list[list[int]], generator: torch.Generator
) -> None:
    """Adds embedding rows for the latents' tokens (K lists of P ids), initialised differently from
    each other.

    Equal rows would give every latent the same loss, a saddle point that training does not leave.
    So each row is the mean row plus one of K P orthogonal directions (random ones if K P exceeds
    the hidden size), scaled to a typical row's distance from the mean row.
    """
    ids = [token for latent in latent_ids for token in latent]
    grow_embeddings(backbone, max(ids) + 1)
    used = min(ids)
    with torch.no_grad():
        rows = backbone.get_input_embeddings().weight
        spread = (rows[:used] - rows[:used].mean(0)).norm(dim=-1).mean()
        rows[ids] = rows[:used].mean(0) + spread * _directions(
            len(ids), rows.shape[1], generator
        ).to(rows)
        head = backbone.get_output_embeddings()
        if head.weight is not rows:
            head.weight[ids] = head.weight[:used].mean(0)
            if getattr(head, "bias", None) is not None:
                head.bias[ids] = head.bias[:used].mean()


def _directions(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """(count, size) directions of length about 1, orthogonal as far as they fit."""
    noise = torch.randn(max(count, size), size, generator=generator)
    if count <= size:
        return torch.linalg.qr(noise[:size].T).Q.T[:count]
    return noise[:count] / math.sqrt(size)


def freeze_backbone(backbone: PreTrainedModel, trainable_ids: list[int]) -> None:
    """Freezes the backbone except for the embedding rows of `trainable_ids`."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
        layer.weight.requires_grad_(True)
        keep = torch.zeros(layer.weight.shape[0], 1)
        keep[trainable_ids] = 1.0
        layer.weight.register_hook(lambda gradient, keep=keep: gradient * keep.to(gradient))
