"""A batch becomes per-latent token NLL, router and posterior: the model with K latents, without files or configuration.

Shapes: B batch, K latents, C branches read, T z-free tokens, L tokens with the latent section, S supervised tokens,
H hidden size.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from twcli.baseline import at_least_float32, head_logits, hidden_states, target_nll
from twcli.batches import Batch

FIRST_TOKENS = 8  # the opening of y gets a pool of its own: later tokens are given away by what precedes them


@dataclass
class LatentOutput:
    """What one pass over a batch gives.

    Attributes:
        nll_BCS: float32 nats, zero where not active; C branches a record: all K latents, or the one asked for.
        log_router_BK: log p(z|x).
        log_posterior_BK: log q(z|x,y); None where it was not read, or is the closed form, which needs the loss's terms.
        sequences: sequences that backbones read for this batch.
        baseline_BS: b_t of the current backbone in nats, detached; None where b_t is the frozen model's.
    """

    nll_BCS: torch.Tensor
    log_router_BK: torch.Tensor
    log_posterior_BK: torch.Tensor | None
    sequences: int
    baseline_BS: torch.Tensor | None = None


class PosteriorHead(nn.Module):
    """Logits of q(z|x,y) from hidden states pooled over y: its mean, the mean of its first tokens, its closing tag."""

    def __init__(self, hidden_size: int, latents: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3 * hidden_size)
        self.inner = nn.Linear(3 * hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, latents)
        nn.init.zeros_(self.outer.weight)  # a uniform posterior to begin with
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden_BTH: torch.Tensor, first_B: torch.Tensor, active_BS: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32. Reads the columns of y's tokens and closing tag, those after `first_B`."""
        columns = torch.arange(active_BS.shape[1], device=active_BS.device)
        index = (first_B[:, None] + 1 + columns).clamp(max=hidden_BTH.shape[1] - 1)
        y_BSH = at_least_float32(hidden_BTH.gather(1, index[..., None].expand(-1, -1, hidden_BTH.shape[2])))
        last_B = active_BS.sum(1) - 1
        pools = [_mean(y_BSH, active_BS), _mean(y_BSH, active_BS & (columns < FIRST_TOKENS)),
                 y_BSH[torch.arange(len(y_BSH), device=last_B.device), last_B]]
        return self.outer(nn.functional.gelu(self.inner(self.norm(torch.cat(pools, dim=-1)))))


def _mean(values_BSH: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    mask = mask_BS[..., None].to(values_BSH.dtype)
    return (values_BSH * mask).sum(1) / mask.sum(1).clamp(min=1)


class LatentModel(nn.Module):
    """Backbone, latent tokens and posterior as one module, so that one call is one step of any wrapper (DDP, FSDP).

    Args:
        backbone: causal model whose vocabulary already holds the latent tokens.
        latent_ids: the P token ids of each of the K latents.
        posterior: "shared" reads q from the backbone, "separate" from a copy, "exact" has no module.
        dynamic_baseline: whether each pass gives b_t under the current backbone too. The shared posterior reads the
            z-free sequence anyway; with the others it is one more. Dropout, where the backbone has any, is as in that pass.
    """

    def __init__(self, backbone: PreTrainedModel, latent_ids: list[list[int]], posterior: str, *,
                 dynamic_baseline: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.posterior = posterior
        self.dynamic_baseline = dynamic_baseline
        self.register_buffer("latent_ids_KP", torch.tensor(latent_ids), persistent=False)
        self.reader = copy.deepcopy(backbone.base_model) if posterior == "separate" else None
        hidden_size = backbone.get_input_embeddings().weight.shape[1]
        self.head = None if posterior == "exact" else PosteriorHead(hidden_size, len(latent_ids))

    @property
    def latents(self) -> int:
        return len(self.latent_ids_KP)

    def forward(self, batch: Batch, latent_B: torch.Tensor | None = None, *, read_posterior: bool = True) -> LatentOutput:
        """Reads C branches a record, and the z-free sequence for the posterior.

        Args:
            latent_B: the one latent to read for each record; None for all K. Where q is one-hot the other branches
                have no part in the objective or its gradient.
            read_posterior: False leaves the posterior out.
        """
        B = len(batch.rows_B)
        nll_BCS, log_router_BK = self.read_branches(batch, latent_B)
        log_posterior, baseline, extra, plain_hidden = None, None, 0, None
        if self.head is not None and read_posterior:
            plain_hidden = self._read(batch)
            log_posterior, extra = torch.log_softmax(self._posterior_logits(plain_hidden, batch), dim=-1), B
        if self.dynamic_baseline:
            # Last, because autocast would keep casts made without gradient for the passes that need one.
            with torch.no_grad():
                if plain_hidden is None or self.reader is not None:
                    plain_hidden, extra = hidden_states(self.backbone, batch.plain_BT), extra + B
                baseline = target_nll(self.backbone, plain_hidden, batch.plain_first_B, batch.targets_BS, batch.active_BS)
        return LatentOutput(nll_BCS=nll_BCS, log_router_BK=log_router_BK, log_posterior_BK=log_posterior,
                            sequences=nll_BCS.shape[0] * nll_BCS.shape[1] + extra, baseline_BS=baseline)

    def read_branches(self, batch: Batch, latent_B: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """NLL (B, C, S) of the branches as `forward` takes them, and log p(z|x) (B, K); C sequences a record are read."""
        B, device = len(batch.rows_B), batch.latent_BL.device
        latent_BC = torch.arange(self.latents, device=device).expand(B, -1) if latent_B is None else latent_B[:, None]
        C = latent_BC.shape[1]
        branches_L = batch.latent_BL.repeat_interleave(C, dim=0)
        slot, first, active = (t.repeat_interleave(C, dim=0) for t in (batch.slot_B, batch.latent_first_B, batch.active_BS))
        rows = torch.arange(B * C, device=device)
        spelling = torch.arange(self.latent_ids_KP.shape[1], device=device)
        branches_L[rows[:, None], slot[:, None] + spelling] = self.latent_ids_KP[latent_BC.reshape(-1)]
        hidden = hidden_states(self.backbone, branches_L)
        nll = target_nll(self.backbone, hidden, first, batch.targets_BS.repeat_interleave(C, dim=0), active)
        # `<z>` stands before the latent, so each branch predicts the same router; the first one is read. A latent's
        # first token tells it from the others, and what follows is spelled out, not predicted.
        router_hidden = hidden[rows[::C], slot[::C] - 1]
        router_logits = at_least_float32(head_logits(self.backbone, router_hidden)[:, self.latent_ids_KP[:, 0]])
        return nll.view(B, C, -1), torch.log_softmax(router_logits, dim=-1)

    def posterior_logits(self, batch: Batch) -> torch.Tensor:
        """(B, K) from the z-free sequence `<bos> <x> x </x> <y> y </y> <eos>`."""
        return self._posterior_logits(self._read(batch), batch)

    def _read(self, batch: Batch) -> torch.Tensor:
        """(B, T, H): the z-free sequence as the posterior sees it."""
        if self.reader is None:
            return hidden_states(self.backbone, batch.plain_BT)
        return self.reader(input_ids=batch.plain_BT, use_cache=False).last_hidden_state

    def _posterior_logits(self, hidden_BTH: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.head(hidden_BTH, batch.plain_first_B, batch.active_BS)


def add_latent_rows(backbone: PreTrainedModel, latent_ids: list[list[int]], generator: torch.Generator) -> None:
    """Extends the embeddings to the latents' tokens (K lists of P ids) and sets their rows apart from each other.

    New rows that start alike give every latent the same loss, a saddle that training does not leave; these are
    the mean row plus orthogonal directions (random ones where K P exceeds the hidden size) of a typical row's length.
    """
    ids = [token for latent in latent_ids for token in latent]
    embeddings = backbone.get_input_embeddings()
    old = embeddings.num_embeddings
    needed = max(ids) + 1
    if needed > old:
        backbone.resize_token_embeddings(needed, mean_resizing=False)
    used = min(ids)
    with torch.no_grad():
        rows = backbone.get_input_embeddings().weight
        spread = (rows[:used] - rows[:used].mean(0)).norm(dim=-1).mean()
        rows[ids] = rows[:used].mean(0) + spread * _directions(len(ids), rows.shape[1], generator).to(rows)
        head = backbone.get_output_embeddings()
        if head.weight is not rows:
            head.weight[ids] = head.weight[:used].mean(0)
            if getattr(head, "bias", None) is not None:
                head.bias[ids] = head.bias[:used].mean()


def _directions(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(max(count, size), size, generator=generator)
    if count <= size:
        return torch.linalg.qr(noise[:size].T).Q.T[:count]
    return noise[:count] / math.sqrt(size)


def freeze_backbone(model: LatentModel, trainable_ids: list[int]) -> None:
    """Leaves the posterior's modules and the rows of `trainable_ids` to train, and nothing else of the backbone."""
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    for layer in {model.backbone.get_input_embeddings(), model.backbone.get_output_embeddings()}:
        layer.weight.requires_grad_(True)
        keep = torch.zeros(layer.weight.shape[0], 1)
        keep[trainable_ids] = 1.0
        layer.weight.register_hook(lambda gradient, keep=keep: gradient * keep.to(gradient))
