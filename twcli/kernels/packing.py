"""Sequences that share a prompt, in one forward pass: every prompt is computed once, however many
branches continue it.

All tokens of a batch form one sequence, so that layers that work token by token see no padding:

    | prompt 1 | prompt 2 | .. | branch 1 of row 1 | branch 2 of row 1 | .. | branch 1 of row 2 | ..

Only attention depends on which branch continues which prompt. It works on prompts and branches of
equal length, so padding is inserted before attention and removed after it. Attention has one of
these forms, whichever is cheapest for the shape:

    branches   each branch attends to a copy of its prompt's keys and values, then causally to
               itself
    tree       the branches of a record attend in one piece under a dense mask that keeps them
               apart: no copy a branch, but C times the scores

With a GPU's flash kernels (see `flash`), branches attend without copy, mask or padding.

Shapes: G distinct prompts of up to P tokens, B rows, C branches a row of up to Q tokens, N = G P +
B C Q, R of them real, H hidden size, A attention heads of size D.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from twcli.kernels import flash
from twcli.kernels.body import body_of

AUTO, PLAIN, BRANCHES, TREE = "auto", "plain", "branches", "tree"
KERNELS = "kernels"  # usable where `flash` is; it then replaces "branches"
ATTENTION = "twcli_packed"

DENSE = 0.95  # share of real tokens above which keeping the padding costs less than removing it


def tokens_computed(real: int, padded: int) -> int:
    """Tokens that go through the model in a packed pass: `real`, or `padded` with padding."""
    if real < DENSE * padded:
        return real
    return padded


class _Rows(torch.autograd.Function):
    """Rows `index` of x. `back` gives the output row of each row of x, -1 for none. With it the
    backward pass is a gather too; that of plain indexing would add row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        place = back.clamp(min=0)
        found = gradient.index_select(0, place)
        ones = [1] * (found.dim() - 1)
        without = (back < 0).view(-1, *ones)
        found.masked_fill_(without, 0)
        return found, None, None


@dataclass(frozen=True)
class Padding:
    """Positions of R real tokens among N.

    Attributes:
        real_R: positions of the real tokens, in the order in which the model gets them.
        place_N: number of each real token, -1 for padding.
    """

    real_R: torch.Tensor
    place_N: torch.Tensor

    def put_in(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (R, ..) with padding: (N, ..).

        Padding repeats some token, so it must not enter the loss.
        """
        return _Rows.apply(x, self.place_N.clamp(min=0), self.real_R)

    def taken_out(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of `x` (N, ..) that are no padding: (R, ..), with the gradient of a gather."""
        return _Rows.apply(x, self.real_R, self.place_N)


@dataclass(frozen=True)
class Packed:
    """The prompts and branches of a batch.

    Attributes:
        prompt_GP: ids, padded on the right; `length_G` are real.
        row_B: the prompt of each row.
        branch_BCQ: ids that follow the prompt, padded on the right; `length_BC` are real.
        execution: "branches", "tree" or "kernels".
        position_BCQ: of the branches' tokens; None where they continue those of their prompt.
    """

    prompt_GP: torch.Tensor
    length_G: torch.Tensor
    row_B: torch.Tensor
    branch_BCQ: torch.Tensor
    length_BC: torch.Tensor
    execution: str
    position_BCQ: torch.Tensor | None = None

    @cached_property
    def padding(self) -> Padding | None:
        """None if nearly all tokens are real: padding then goes through the model too. The flash
        kernels need all padding removed and the rows sorted by prompt.
        """
        real_prompts = _is_real(self.prompt_GP, self.length_G)
        real_branches = _is_real(self.branch_BCQ, self.length_BC)
        real_N = torch.cat([real_prompts.flatten(), real_branches.flatten()])
        real_R = real_N.nonzero()[:, 0]
        if self.execution == KERNELS:
            positions = torch.arange(len(real_N), device=real_N.device)
            sizes = [self.prompt_GP.numel(), self.branch_BCQ.numel()]
            prompts, branches = positions.split(sizes)
            by_row = branches.view(len(self.row_B), -1)
            order_N = torch.cat([prompts, by_row[self.order_B].flatten()])
            real_R = order_N[real_N[order_N]]
        elif tokens_computed(len(real_R), len(real_N)) == len(real_N):
            return None
        number_R = torch.arange(len(real_R), device=real_R.device)
        no_place_N = real_R.new_full((len(real_N),), -1)
        return Padding(real_R, no_place_N.index_copy(0, real_R, number_R))

    @cached_property
    def pieces(self) -> flash.Pieces:
        """The layout of the real tokens for the flash kernels."""
        behind_G = torch.zeros_like(self.length_G).index_add(0, self.row_B, self.length_BC.sum(1))
        lengths_S = self.length_BC[self.order_B].flatten()
        figures = [self.length_G.sum(), self.length_G.min(), behind_G.max()]
        tokens, shortest, longest = torch.stack(figures).tolist()
        return flash.Pieces.of(
            self.length_G,
            lengths_S,
            behind_G,
            prompt_tokens=tokens,
            longest_prompt=self.prompt_GP.shape[1],
            longest_piece=self.branch_BCQ.shape[2],
            longest_behind=longest,
            some_empty=shortest == 0,
        )

    @cached_property
    def order_B(self) -> torch.Tensor:
        """(B,) the rows sorted by prompt."""
        return self.row_B.argsort(stable=True)

    @property
    def input_ids(self) -> torch.Tensor:
        """(1, R), or with padding (1, N)."""
        prompts = self.prompt_GP.flatten()
        branches = self.branch_BCQ.flatten()
        ids_N = torch.cat([prompts, branches])
        ids_R = self._without_padding(ids_N)
        return ids_R[None]

    @property
    def position_ids(self) -> torch.Tensor:
        """Shaped as `input_ids`."""
        G, P = self.prompt_GP.shape
        Q = self.branch_BCQ.shape[2]
        columns = torch.arange(max(P, Q), device=self.prompt_GP.device)
        position_BCQ = self.position_BCQ
        if position_BCQ is None:
            # Padding repeats its branch's last position: frequencies may depend on the largest one.
            last_BC1 = self.length_BC[..., None] - 1
            within_BCQ = torch.minimum(columns[:Q], last_BC1)
            prompt_B = self.length_G[self.row_B]
            position_BCQ = prompt_B[:, None, None] + within_BCQ
        prompts_GP = columns[:P].expand(G, P)
        positions_N = torch.cat([prompts_GP.flatten(), position_BCQ.flatten()])
        positions_R = self._without_padding(positions_N)
        return positions_R[None]

    def _without_padding(self, x_N: torch.Tensor) -> torch.Tensor:
        """(R, ..) of (N, ..), or all of it where padding is kept."""
        if self.padding is None:
            return x_N
        return x_N[self.padding.real_R]

    @cached_property
    def one_to_one(self) -> bool:
        """Whether row i continues prompt i, so that prompts need no reordering."""
        B = len(self.row_B)
        G = len(self.length_G)
        in_order_B = torch.arange(B, device=self.row_B.device)
        return B == G and torch.equal(self.row_B, in_order_B)

    @cached_property
    def mask(self) -> torch.Tensor:
        """The additive mask of the branches: (B C, 1, Q, P + Q), or for the tree (B, 1, C Q, P + C
        Q).
        """
        P, (C, Q) = self.prompt_GP.shape[1], self.branch_BCQ.shape[1:]
        prompt_BP = (
            torch.arange(P, device=self.prompt_GP.device) < self.length_G[self.row_B][:, None]
        )
        if bool(prompt_BP.all()):
            prompt_BP = prompt_BP[:1]  # one mask serves all rows
        if self.execution == TREE:
            return tree_mask(prompt_BP, C, Q)
        if len(prompt_BP) > 1:
            prompt_BP = prompt_BP.repeat_interleave(C, dim=0)
        return tree_mask(prompt_BP, 1, Q)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of all tokens; not for `flash`.

        Args:
            query, key, value: (1, A, R, D).
            scale: factor of the scores.

        Returns:
            (1, R, A, D), with N instead of R if padding is kept.
        """
        by_token = [x[0].transpose(0, 1) for x in with_all_heads(query, key, value)]
        if self.padding is not None:
            by_token = [self.padding.put_in(x) for x in by_token]
        query, key, value = (x.transpose(0, 1)[None] for x in by_token)
        output = self._attend(query, key, value, scale)[0]
        if self.padding is not None:
            output = self.padding.taken_out(output)
        return output[None]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `attend`, with padding: (1, N, A, D) from (1, A, N, D)."""
        (G, P), (B, C, Q) = self.prompt_GP.shape, self.branch_BCQ.shape
        if self.execution == TREE:
            pieces = (B, C * Q)
        else:
            pieces = (B * C, Q)

        def parted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # One split: its backward pass concatenates two pieces, that of two slices would add two
            # padded tensors.
            lengths = [G * P, B * C * Q]
            prompts, branches = x[0].split(lengths, dim=1)
            prompts = prompts.unflatten(1, (G, P))
            branches = branches.unflatten(1, pieces)
            return prompts.transpose(0, 1), branches.transpose(0, 1)

        def joined(prompts: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
            """Keys or values of each row's prompt, and of its branches behind them."""
            if not self.one_to_one:
                prompts = prompts.index_select(0, self.row_B)
            if self.execution != TREE:
                each_branch = prompts[:, None].expand(-1, C, -1, -1, -1)
                prompts = each_branch.flatten(0, 1)
            return torch.cat([prompts, branches], dim=2)

        query, branch_query = parted(query)
        key, branch_key = parted(key)
        value, branch_value = parted(value)
        # Padding is on the right, where a causal token never looks.
        on_prompts = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        on_branches = F.scaled_dot_product_attention(
            branch_query,
            joined(key, branch_key),
            joined(value, branch_value),
            attn_mask=self.mask.to(query.dtype),
            scale=scale,
        )
        on_prompts = on_prompts.transpose(0, 1).flatten(1, 2)
        on_branches = on_branches.transpose(0, 1).flatten(1, 2)
        output = torch.cat([on_prompts, on_branches], dim=1)
        return output[None].transpose(1, 2)


def _is_real(ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Bool of the shape of `ids` (.., T): the first `length` (..) tokens of each sequence."""
    columns = torch.arange(ids.shape[-1], device=ids.device)
    return columns < length[..., None]


def tree_mask(prompt_BP: torch.Tensor, branches: int, tokens: int) -> torch.Tensor:
    """The additive mask (B, 1, n, P + n) of n = branches * tokens queries. Each query sees itself
    and the tokens before it in its own branch, and the prompt tokens that are true in `prompt_BP`.
    """
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=prompt_BP.device).tril()
    own = torch.block_diag(*[causal] * branches)
    before = prompt_BP[:, None].expand(-1, len(own), -1)
    seen = torch.cat([before, own.expand(len(prompt_BP), -1, -1)], dim=2)
    return added(seen)[:, None]


def added(seen: torch.Tensor) -> torch.Tensor:
    """The additive float32 mask (..) of `seen` (..): 0 where it is true, -inf elsewhere."""
    zeros = torch.zeros(seen.shape, device=seen.device)
    return zeros.masked_fill(~seen, -torch.inf)


def with_all_heads(query: torch.Tensor, *shared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The query, and keys and values (.., A, N, D) with as many attention heads as it has."""
    groups = query.shape[-3] // shared[0].shape[-3]
    if groups == 1:
        return query, *shared
    return query, *(x.repeat_interleave(groups, dim=-3) for x in shared)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Any,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in each layer. `packed` (a `Packed`, `Groups`
    or `Pieces`) computes it.
    """
    assert dropout == 0.0 and others.get("softcap") is None and others.get("s_aux") is None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return packed.attend(query, key, value, scaling), None


AttentionInterface.register(ATTENTION, _attention)


def packed_hidden_states(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """Last hidden states (B, C, Q, H) of the branches' tokens, equal to those of each branch run
    alone after its prompt.
    """
    with attention_of(model, ATTENTION):
        hidden = body_of(model)(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            use_cache=False,
            packed=packed.pieces if packed.execution == KERNELS else packed,
        ).last_hidden_state[0]
    if packed.padding is not None:
        hidden = packed.padding.put_in(hidden)
    return hidden[packed.prompt_GP.numel() :].unflatten(0, packed.branch_BCQ.shape)


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within it, every layer uses the attention registered under `name`."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def why_not_packed(model: PreTrainedModel, *, trained: bool = True) -> str | None:
    """Why this model cannot share a prompt's states among branches; None if no reason is known.

    `trained`: whether the model is in training mode, where dropout is active.

    In a model that mixes tokens outside attention, by a convolution or a recurrent state, the
    branches would see one another.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        return f"it has layers of {', '.join(sorted(map(str, kinds)))}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    if any(isinstance(module, (nn.Conv1d, nn.RNNBase)) for module in model.modules()):
        return "it has convolutions or recurrent layers"
    dropped: Any = any(
        isinstance(module, nn.Dropout) and module.p for module in model.modules()
    ) or getattr(config, "attention_dropout", 0.0)
    if trained and dropped:
        return "it has dropout, which differs from branch to branch"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing is on"
    return None


def window_of(model: PreTrainedModel) -> int | None:
    """Size of the sliding window in tokens, if any layer has one: longer sequences cannot be
    packed.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds:
        sliding = "sliding_attention" in kinds
    else:
        sliding = getattr(config, "use_sliding_window", True)
    if sliding:
        return getattr(config, "sliding_window", None)
    return None


def linear_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The matrices (O, I) that every token is multiplied with below the LM head; no tables of
    embeddings.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables = {id(embedding.weight) for embedding in embeddings}
    matrices = [weight for weight in body_of(model).parameters() if weight.dim() == 2]
    return [weight for weight in matrices if id(weight) not in tables]
