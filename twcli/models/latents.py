"""The model with K latents: from a batch it computes per-latent token NLL, router and posterior.
Uses no files and no configuration.

Shapes: B batch, K latents, C branches (latents in the forward pass), T z-free tokens, L tokens with
the latent section, S supervised tokens, H hidden size.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from twcli.data.batches import Batch, leading, opening
from twcli.kernels import flash
from twcli.kernels.body import body_of
from twcli.kernels.costs import cheapest
from twcli.kernels.head import HEAD_LOGITS, at_least_float32, head_logits, target_nll
from twcli.kernels.linear import fast_linear
from twcli.kernels.packing import AUTO, BRANCHES, KERNELS, PLAIN, Packed, packed_hidden_states
from twcli.models.forward import hidden_states
from twcli.models.positions import pass_lengths, section_positions

# prune only if the branches have this many times the tokens of the prompts: computing the prompts
# twice then wastes less than a tenth
PROMPT_AGAIN = 8
# the first tokens of y are pooled separately: later tokens are predictable from those before them
FIRST_TOKENS = 8


@dataclass
class LatentOutput:
    """The results of one forward pass over a batch.

    Attributes:
        nll_BCS: float32 nats, zero where not active; C branches per record: all K latents, or the
            one requested.
        log_router_BK: log p(z|x).
        log_posterior_BK: log q(z|x,y); None if it was not computed, or if it is the exact
            posterior, which the loss computes from its own terms.
        sequences: number of sequences in the forward passes of this batch.
        baseline_BS: b_t of the current backbone in nats, detached; None if b_t comes from the
            frozen model.
        divergence_BS: Jensen-Shannon divergence of the C branches' next-token distributions in
            nats, zero where not active; None if it was not requested.
        pruned: share of the posterior's mass on branches that were computed without a gradient.
        nll_bound_BS: bound in nats on the error of sum_z q(z) l_t(z) at tokens that such branches
            skipped, zero elsewhere; None if no tokens were skipped.
    """

    nll_BCS: torch.Tensor
    log_router_BK: torch.Tensor
    log_posterior_BK: torch.Tensor | None
    sequences: int
    baseline_BS: torch.Tensor | None = None
    divergence_BS: torch.Tensor | None = None
    pruned: float = 0.0
    nll_bound_BS: torch.Tensor | None = None


@dataclass
class Read:
    """Hidden states (R, T, H) of R sequences, or of their ends, and the column of `<y>` in each,
    which predicts the first target.
    """

    hidden: torch.Tensor
    first: torch.Tensor


class PosteriorHead(nn.Module):
    """Logits of q(z|x,y) from hidden states pooled over y: their mean, the mean over its first
    tokens, and the state of its closing tag.
    """

    def __init__(self, hidden_size: int, latents: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3 * hidden_size)
        self.inner = nn.Linear(3 * hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, latents)
        nn.init.zeros_(self.outer.weight)  # the posterior is uniform at initialisation
        nn.init.zeros_(self.outer.bias)

    def forward(
        self, hidden_BTH: torch.Tensor, first_B: torch.Tensor, active_BS: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, K) in float32, from the columns of y's tokens and closing tag, which follow
        `first_B`.
        """
        columns = torch.arange(active_BS.shape[1], device=active_BS.device)
        index = (first_B[:, None] + 1 + columns).clamp(max=hidden_BTH.shape[1] - 1)
        y_BSH = at_least_float32(
            hidden_BTH.gather(1, index[..., None].expand(-1, -1, hidden_BTH.shape[2]))
        )
        last_B = active_BS.sum(1) - 1
        pools = [
            _mean(y_BSH, active_BS),
            _mean(y_BSH, active_BS & (columns < FIRST_TOKENS)),
            y_BSH[torch.arange(len(y_BSH), device=last_B.device), last_B],
        ]
        return self.outer(nn.functional.gelu(self.inner(self.norm(torch.cat(pools, dim=-1)))))


def _mean(values_BSH: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """(B, H) means of (B, S, H) over the positions where `mask_BS` is true."""
    mask = mask_BS[..., None].to(values_BSH.dtype)
    return (values_BSH * mask).sum(1) / mask.sum(1).clamp(min=1)


class LatentModel(nn.Module):
    """Backbone, latent tokens and posterior as one module, so that one training step is one call of
    its wrapper (DDP, FSDP).

    Args:
        backbone: causal model whose vocabulary already holds the latent tokens.
        latent_ids: the P token ids of each of the K latents.
        posterior: "shared" computes q from the backbone's hidden states, "separate" from those of a
            copy, "exact" has no posterior module.
        dynamic_baseline: whether each forward pass also gives b_t under the current backbone. The
            shared posterior needs the z-free sequence anyway; the others need one more sequence.
            Dropout, if the backbone has any, is active as in the rest of the pass.
        latent_chunk: number of latents whose branches go through the model together, None for all.
            The backward pass recomputes each chunk, so that memory holds the activations of one
            chunk instead of K branches; loss and gradient are the same.

    Attributes:
        execution: how sequences of one prompt go through the model: "plain", each separately;
            "branches" or "tree", with the prompt computed once (see `packing`); "auto", the
            cheapest for the batch's shape. Set to another value than "plain" only after
            `check_packing`.
        section_width: of the positions that the latent section takes up, from 0 to 1, which a
            finished model has (`section_positions`).
        pass_lengths: lengths that may share a forward pass. A batch holds rows of one class only
            (`batches.length_classes`).
    """

    latent_ids_KP: torch.Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        latent_ids: list[list[int]],
        posterior: str,
        *,
        dynamic_baseline: bool = False,
        latent_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.posterior = posterior
        self.dynamic_baseline = dynamic_baseline
        self.latent_chunk = latent_chunk
        self.execution = PLAIN
        self.section_width = 1.0
        self.pass_lengths = pass_lengths(backbone)
        self.register_buffer("latent_ids_KP", torch.tensor(latent_ids), persistent=False)
        if posterior == "separate":
            self.reader: nn.Module | None = copy.deepcopy(body_of(backbone))
        else:
            self.reader = None
        hidden_size = backbone.get_input_embeddings().weight.shape[1]
        if posterior == "exact":
            self.head = None
        else:
            self.head = PosteriorHead(hidden_size, len(latent_ids))

    @property
    def latents(self) -> int:
        """K."""
        return len(self.latent_ids_KP)

    @property
    def section(self) -> int:
        """Tokens of `<z> z_k </z>`."""
        return 2 + self.latent_ids_KP.shape[1]

    def forward(
        self,
        batch: Batch,
        latent_B: torch.Tensor | None = None,
        *,
        with_posterior: bool = True,
        with_divergence: bool = False,
        prune: float = 0.0,
    ) -> LatentOutput:
        """Runs C branches per record through the model, and the z-free sequence for the posterior.

        Args:
            latent_B: the one latent to compute for each record; None for all K. If q is one-hot,
                the other branches do not enter the objective or its gradient.
            with_posterior: False omits the posterior.
            with_divergence: also compares the branches' next-token
                distributions; not with `latent_chunk`.
            prune: maximum share of the batch's posterior mass to prune. The branches with this
                mass, the least likely of each record, are computed without a gradient. If the batch
                has b_t, they also stop after the last token with relevant b_t (`batches.opening`);
                for later tokens they get the expected NLL under the other latents. The generator's
                gradient lacks the terms of that mass, and `nll_bound_BS` bounds the error of the
                loss. Ignored with `latent_B`, `latent_chunk` or `with_divergence`, and if prompts
                are so long that computing them twice could cost more than pruning saves.
        """
        B = len(batch.rows_B)
        with_posterior = with_posterior and self.head is not None
        latent_BC = self._latents_of(batch, latent_B)
        z_free = with_posterior and self.reader is None
        plain: Read | None
        divergence = None
        log_posterior = None
        pruned = 0.0
        nll_bound = None
        prunes = prune and with_posterior and latent_B is None and not with_divergence
        if prunes and self._may_prune(batch):
            plain = self._forward_z_free(self.backbone, batch) if z_free else None
            log_posterior = self._log_posterior(batch, plain)
            nll_BCS, log_router_BK, pruned, nll_bound = self._forward_by_mass(
                batch, log_posterior.detach().exp(), prune
            )
        elif self._in_chunks(latent_BC):
            nll_BCS, log_router_BK = self._chunk_by_chunk(batch, latent_BC)
            plain = self._forward_z_free(self.backbone, batch) if z_free else None
        else:
            branches, plain = self._forward(self.backbone, batch, latent_BC, z_free=z_free)
            assert branches is not None
            nll_BCS, log_router_BK = self._score(branches, batch, latent_BC.shape[1])
            if with_divergence:
                divergence = self._divergence(branches, batch, latent_BC.shape[1])
        baseline = None
        sequences = nll_BCS.shape[0] * nll_BCS.shape[1] + B * with_posterior
        if with_posterior and log_posterior is None:
            log_posterior = self._log_posterior(batch, plain)
        if self.dynamic_baseline:
            # Last, because autocast would cache casts made without a gradient and use them in
            # passes that need one.
            sequences += B * (plain is None)
            baseline = self._own_baseline(batch, plain)
        return LatentOutput(
            nll_BCS=nll_BCS,
            log_router_BK=log_router_BK,
            log_posterior_BK=log_posterior,
            sequences=sequences,
            baseline_BS=baseline,
            divergence_BS=divergence,
            pruned=pruned,
            nll_bound_BS=nll_bound,
        )

    @torch.no_grad()
    def _own_baseline(self, batch: Batch, plain: Read | None) -> torch.Tensor:
        """b_t (B, S) of the current model, in nats, from the z-free sequence; read here if None."""
        if plain is None:
            plain = self._forward_z_free(self.backbone, batch)
        return target_nll(
            self.backbone, plain.hidden, plain.first, batch.targets_BS, batch.active_BS
        )

    def score_branches(
        self, batch: Batch, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """NLL (B, C, S) under the `first` C latents, or all K, and log p(z|x) (B, K); runs C
        sequences per record.
        """
        latent_BC = self._latents_of(batch, None)[:, :first]
        if self._in_chunks(latent_BC):
            return self._chunk_by_chunk(batch, latent_BC)
        return self._forward_and_score(batch, latent_BC)

    def opened(self, batch: Batch, share: float) -> tuple[Batch, float]:
        """The batch without the ends of y that `batches.opening` cuts off, and the share of b_t
        there; whole if the length of a pass changes its result.
        """
        if self.pass_lengths:
            return batch, 0.0
        return opening(batch, share)

    def _in_chunks(self, latent_BC: torch.Tensor) -> bool:
        """Whether so many latents are computed a few at a time."""
        return self.latent_chunk is not None and latent_BC.shape[1] > self.latent_chunk

    def _chunk_by_chunk(
        self, batch: Batch, latent_BC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_forward_and_score`, a few latents at a time, and again in the backward pass."""
        parts = [
            checkpoint(self._forward_and_score, batch, chunk_BC, use_reentrant=False)
            for chunk_BC in latent_BC.split(self.latent_chunk, dim=1)
        ]
        return torch.cat([nll for nll, _ in parts], dim=1), parts[0][1]

    def _forward_and_score(
        self, batch: Batch, latent_BC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(NLL (B, C, S) in nats, the router's log-probabilities (B, K)) under latents (B, C)."""
        branches, _ = self._forward(self.backbone, batch, latent_BC, z_free=False)
        assert branches is not None
        return self._score(branches, batch, latent_BC.shape[1])

    def _log_posterior(self, batch: Batch, plain: Read | None) -> torch.Tensor:
        """log q(z|x,y) (B, K) from the hidden states `plain` of the z-free sequence; if None, they
        are computed, by the separate posterior model if there is one.
        """
        if plain is None:
            logits_BK = self.posterior_logits(batch)
        else:
            logits_BK = self._posterior_logits(plain, batch)
        return torch.log_softmax(logits_BK, dim=-1)

    def _may_prune(self, batch: Batch) -> bool:
        """Whether skipping latents can save more than reading the prompts again costs."""
        prompts = int(batch.plain_first_B[batch.leader_G].sum())
        return (
            self.latent_chunk is None
            and prompts * PROMPT_AGAIN < (self.latents - 1) * batch.active_BS.numel()
        )

    def _forward_by_mass(
        self, batch: Batch, mass_BK: torch.Tensor, prune: float
    ) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]:
        """NLL (B, K, S), log p(z|x), the share of the mass without a gradient, at most `prune`, and
        `nll_bound_BS`.
        """
        sorted_BK, order_BK = mass_BK.sort(dim=1, descending=True)
        C, left = leading(sorted_BK.mean(0, dtype=torch.float64), prune)
        nll_BKS, log_router_BK = self._forward_and_score(batch, order_BK[:, :C])
        nll_bound_BS = None
        if C < self.latents:
            opened, _ = self.opened(batch, prune)
            with torch.no_grad():
                others, _ = self._forward_and_score(opened, order_BK[:, C:])
                if (read := others.shape[2]) < nll_BKS.shape[2]:
                    likely_BC = sorted_BK[:, :C] / sorted_BK[:, :C].sum(1, keepdim=True)
                    later = torch.einsum("bc,bcs->bs", likely_BC, nll_BKS[..., read:])
                    others = torch.cat(
                        [others, later[:, None].expand(-1, self.latents - C, -1)], dim=2
                    )
                    nll_bound_BS = self._nll_bound(batch.active_BS, sorted_BK[:, C:].sum(1), read)
            nll_BKS = torch.cat([nll_BKS, others], dim=1)
        return (
            nll_BKS.gather(1, order_BK.argsort(dim=1)[..., None].expand_as(nll_BKS)),
            log_router_BK,
            left,
            nll_bound_BS,
        )

    def _nll_bound(self, active_BS: torch.Tensor, mass_B: torch.Tensor, read: int) -> torch.Tensor:
        """(B, S) bound in nats on the error of the expected NLL after the first `read` tokens.
        Assumes that no pruned latent gives a token of the data less than the uniform probability
        over the vocabulary.
        """
        later_BS = active_BS & (torch.arange(active_BS.shape[1], device=active_BS.device) >= read)
        return (
            later_BS
            * mass_B[:, None]
            * math.log(self.backbone.get_input_embeddings().weight.shape[0])
        )

    def posterior_logits(self, batch: Batch) -> torch.Tensor:
        """Logits (B, K) of q(z|x, y) from the z-free sequence `<bos> <x> x </x> <y> y </y> <eos>`;
        needs a posterior head, so not the closed form.
        """
        plain = self._forward_z_free(self.reader or self.backbone, batch)
        return self._posterior_logits(plain, batch)

    def _latents_of(self, batch: Batch, latent_B: torch.Tensor | None) -> torch.Tensor:
        """The latents to compute for each row: all K, or the one that a row is held at.

        Args:
            latent_B: (B,) int64, None for all.

        Returns:
            (B, C) int64, C being K or 1.
        """
        everything = torch.arange(self.latents, device=batch.latent_BL.device).expand(
            len(batch.rows_B), -1
        )
        if latent_B is None:
            return everything
        return latent_B[:, None]

    def _forward_z_free(self, model: PreTrainedModel, batch: Batch) -> Read:
        """The pass over the records without latents, which the posterior and b_t read."""
        _, plain = self._forward(model, batch, None, z_free=True)
        assert plain is not None
        return plain

    def _forward(
        self, model: PreTrainedModel, batch: Batch, latent_BC: torch.Tensor | None, *, z_free: bool
    ) -> tuple[Read | None, Read | None]:
        """Hidden states of the B C sequences of the latents, record after record, and of the z-free
        sequences; None for those not requested.
        """
        if self.pass_lengths:
            self._check_one_class(batch)
            if z_free and latent_BC is not None:  # they may be of different classes
                branches, _ = self._forward(model, batch, latent_BC, z_free=False)
                return branches, self._forward_z_free(model, batch)
        if latent_BC is None:
            ids_BCL = None
        else:
            ids_BCL = self._spelled_out(batch, latent_BC)
        C = 0 if ids_BCL is None else ids_BCL.shape[1]
        position_BCL = self._positions(batch, ids_BCL)
        # The first column in which sequences of a prompt may differ: the latent section, or the
        # prediction of y if that comes first in the template.
        fork_B = torch.minimum(batch.plain_first_B, batch.slot_B - 1)
        plain_first_B = batch.plain_first_B - fork_B
        latent_first_B = batch.latent_first_B - fork_B
        length_G = fork_B[batch.leader_G]
        # The posterior also uses the hidden state of y's closing tag, which predicts nothing.
        length_BC = (
            torch.stack([plain_first_B + 1] * z_free + [latent_first_B] * C, dim=1)
            + batch.active_BS.sum(1)[:, None]
        )
        if self.pass_lengths:  # all that follows counts as well
            whole_B = batch.length_B - fork_B
            length_BC = torch.stack([whole_B] * z_free + [whole_B + self.section] * C, dim=1)
        # one synchronisation with the GPU instead of three
        P, Q, real = torch.stack(
            [length_G.max(), length_BC.max(), length_G.sum() + length_BC.sum()]
        ).tolist()
        prompt_GP = batch.plain_BT[batch.leader_G, :P]
        execution = self.execution
        if execution == AUTO:
            execution = cheapest(
                model, (len(prompt_GP), prompt_GP.shape[1]), (*length_BC.shape, Q), real
            )
        elif execution == BRANCHES and flash.usable(model):
            execution = KERNELS
        with fast_linear(model):
            if execution == PLAIN:
                if ids_BCL is None:
                    alone = None
                else:
                    placed = None if position_BCL is None else position_BCL.flatten(0, 1)
                    alone = Read(
                        hidden_states(model, ids_BCL.flatten(0, 1), placed),
                        batch.latent_first_B.repeat_interleave(C),
                    )
                return alone, Read(
                    hidden_states(model, batch.plain_BT), batch.plain_first_B
                ) if z_free else None
            wanted: list[Any] = [batch.plain_BT[:, None]] * z_free + [ids_BCL] * bool(C)
            branch_BCQ = torch.cat([_columns(ids, fork_B, Q) for ids in wanted], dim=1)
            position_BCQ = None
            if position_BCL is not None:
                # the z-free sequence's are the usual ones
                usual_T = torch.arange(batch.plain_BT.shape[1], device=fork_B.device)
                usual_B1T = usual_T.expand(len(fork_B), 1, -1)
                every = [usual_B1T] * z_free + [position_BCL]
                position_BCQ = torch.cat([_columns(at, fork_B, Q) for at in every], dim=1)
            packed = Packed(
                prompt_GP, length_G, batch.prompt_B, branch_BCQ, length_BC, execution, position_BCQ
            )
            hidden_BCQH = packed_hidden_states(model, packed)
        branches = None
        if C:
            hidden_RQH = hidden_BCQH[:, int(z_free) :].flatten(0, 1)
            branches = Read(hidden_RQH, latent_first_B.repeat_interleave(C))
        return branches, Read(hidden_BCQH[:, 0], plain_first_B) if z_free else None

    def _positions(self, batch: Batch, ids_BCL: torch.Tensor | None) -> torch.Tensor | None:
        """(B, C, L) of the sequences with a latent; None where they are the usual ones."""
        if ids_BCL is None or self.section_width == 1:
            return None
        start_B = batch.slot_B - 1
        count = ids_BCL.shape[2]
        position_BL = section_positions(start_B, self.section, self.section_width, count)
        return position_BL[:, None].expand(ids_BCL.shape)

    def _check_one_class(self, batch: Batch) -> None:
        """A batch must be of one class of lengths, with and without a latent section."""
        lengths = batch.length_B.cpu().numpy()
        for both in (lengths, lengths + self.section):
            assert len(set(self.pass_lengths.classes(both).tolist())) == 1, "a batch of one class"

    def _spelled_out(self, batch: Batch, latent_BC: torch.Tensor) -> torch.Tensor:
        """(B, C, L): the sequences with their latents' tokens in the slots."""
        ids_BCL = batch.latent_BL[:, None].repeat(1, latent_BC.shape[1], 1)
        slots_BP = batch.slot_B[:, None] + torch.arange(
            self.latent_ids_KP.shape[1], device=ids_BCL.device
        )
        return ids_BCL.scatter(
            2, slots_BP[:, None].expand(-1, latent_BC.shape[1], -1), self.latent_ids_KP[latent_BC]
        )

    def _score(self, branches: Read, batch: Batch, C: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(NLL (B, C, S) in nats, the router's log-probabilities (B, K)) from hidden states."""
        targets, active = (
            t.repeat_interleave(C, dim=0) for t in (batch.targets_BS, batch.active_BS)
        )
        nll = target_nll(self.backbone, branches.hidden, branches.first, targets, active)
        # `<z>` comes before the latent, so every branch gives the same router; the first branch is
        # used. A latent's first token identifies it, so its other tokens are not scored.
        rows = torch.arange(0, len(branches.hidden), C, device=active.device)
        router_hidden = branches.hidden[
            rows, branches.first[rows] - (batch.latent_first_B - (batch.slot_B - 1))
        ]
        router_logits = at_least_float32(
            head_logits(self.backbone, router_hidden)[:, self.latent_ids_KP[:, 0]]
        )
        return nll.view(len(rows), C, -1), torch.log_softmax(router_logits, dim=-1)

    def _divergence(self, branches: Read, batch: Batch, C: int) -> torch.Tensor:
        """(B, S) nats; computes logits for some positions at a time, as `target_nll` does."""
        rows, columns = batch.active_BS.nonzero(as_tuple=True)
        place = branches.first[rows * C] + columns
        hidden_NCH = branches.hidden.unflatten(0, (-1, C))[rows, :, place]
        positions = max(
            1, HEAD_LOGITS // (C * self.backbone.get_output_embeddings().weight.shape[0])
        )
        apart = torch.cat(
            [
                checkpoint(self._apart, piece, use_reentrant=False, preserve_rng_state=False)
                for piece in hidden_NCH.split(positions)
            ]
        )
        return apart.new_zeros(batch.active_BS.shape).index_put((rows, columns), apart)

    def _apart(self, hidden_NCH: torch.Tensor) -> torch.Tensor:
        """(N,) Jensen-Shannon divergence in nats of next tokens under C latents, from (N, C, H)."""
        return jensen_shannon(
            torch.log_softmax(at_least_float32(head_logits(self.backbone, hidden_NCH)), dim=-1)
        )

    def _posterior_logits(self, plain: Read, batch: Batch) -> torch.Tensor:
        """Logits (B, K) of q(z|x, y) from the pass without latents, pooled over the tokens of y."""
        assert self.head is not None
        return self.head(plain.hidden, plain.first, batch.active_BS)


def _columns(ids_BCL: torch.Tensor, first_B: torch.Tensor, count: int) -> torch.Tensor:
    """(B, C, count): each row's columns from `first_B` on; those beyond the end are never used."""
    _, C, L = ids_BCL.shape
    columns = torch.arange(count, device=ids_BCL.device)
    index_BQ = (first_B[:, None] + columns).clamp(max=L - 1)
    index_BCQ = index_BQ[:, None].expand(-1, C, -1)
    return ids_BCL.gather(2, index_BCQ)


def jensen_shannon(log_p: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence (Lin 1991): 0 if all distributions are equal, at most log C.

    Args:
        log_p: (..., C, V) log-probabilities of C distributions.

    Returns:
        (...) in nats.
    """
    C = log_p.shape[-2]
    log_mean = torch.logsumexp(log_p, -2) - math.log(C)
    return torch.special.entr(log_mean.exp()).sum(-1) - torch.special.entr(log_p.exp()).sum(
        -1
    ).mean(-1)
