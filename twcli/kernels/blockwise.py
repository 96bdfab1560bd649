"""Attention of branches that continue shared prompts, on a CPU, a block of queries at a time.

Torch's CPU kernel computes nearly all scores that a causal mask hides. For packed branches it would
need a copy of the prompt for each branch, or compute the scores between all branches. So the
queries are cut into blocks, and each block gets only the keys up to its last query: a block of a
prompt gets that prompt's keys, a block of branches gets their prompt's keys and their own. Hidden
scores are computed within a block only, and each sum has the order in which the kernel would
compute it for a single branch.

Shapes: N tokens; G prompts of up to P tokens, B rows of C branches of up to Q; M sequences of T
tokens; A attention heads of size D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

BLOCK = 64  # queries: few enough for few hidden scores, many enough for fast matrix products
STEP = 32  # queries in each of the kernel's own products
TOGETHER = 128  # queries of short branches that form one block


def usable(device: torch.device) -> bool:
    """Whether torch has the kernel on this device."""
    return device.type == "cpu" and hasattr(
        torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
    )


def cut(tokens: int) -> list[slice]:
    """Cuts the queries of `tokens` tokens into blocks of about `BLOCK`, each below `BLOCK + 2 *
    STEP`.
    """
    count = max(1, round(tokens / BLOCK))
    bounds = [tokens * i // count // STEP * STEP for i in range(count)] + [tokens]
    return [slice(*pair) for pair in pairwise(bounds)]


def grouped(branches: int, tokens: int) -> list[int]:
    """Sizes of the groups of branches that share one call of the kernel."""
    together = min(max(1, TOGETHER // tokens), branches)
    return [min(together, branches - first) for first in range(0, branches, together)]


def cut_group(branches: int, tokens: int) -> list[slice]:
    """Query blocks of a group: a single branch is cut up, several branches form one block."""
    return cut(tokens) if branches == 1 else [slice(0, branches * tokens)]


def reads(P: int, C: int, Q: int) -> tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]:
    """(queries, keys) of each kernel call: for a prompt and, group by group, for the C branches of
    a row.
    """

    def sizes(blocks: list[slice], before: int) -> list[tuple[int, int]]:
        return [(block.stop - block.start, before + block.stop) for block in blocks]

    return sizes(cut(P), 0) if P else [], [sizes(cut_group(n, Q), P) for n in grouped(C, Q)]


class Block(NamedTuple):
    """Queries of a sequence, and the mask that is added to their scores (M or 1, 1, n, keys); None
    if they are causal.
    """

    queries: slice
    mask: torch.Tensor | None


class Group(NamedTuple):
    """Branches of a row that share one call: T of the row's C Q tokens, and the query blocks of
    those T. Their keys are those of the prompt, then their own.
    """

    tokens: slice
    blocks: list[Block]


@dataclass(frozen=True)
class Fork:
    """Prompts and the branches that continue them, all padded on the right, as one sequence of N =
    G P + B C Q tokens.

    Attributes:
        prompts: (G, P).
        branches: (B, C, Q).
        row_B: the prompt of each row; None if row i continues prompt i.
        length_G: tokens of each prompt; None if all have P.
    """

    prompts: tuple[int, int]
    branches: tuple[int, int, int]
    row_B: torch.Tensor | None
    length_G: torch.Tensor | None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of all tokens.

        Args:
            query, key, value: (N, A, D).
            scale: factor of the scores.

        Returns:
            (N, A, D), in the precision of `value`.
        """
        return _Attention.apply(query.to(value.dtype), key.to(value.dtype), value, self, scale)

    def of_prompts(self, x: torch.Tensor) -> torch.Tensor:
        """The prompts' part of `x` (N, A, ..): (G, A, P, ..)."""
        return x[: self.prompts[0] * self.prompts[1]].unflatten(0, self.prompts).transpose(1, 2)

    def of_branches(self, x: torch.Tensor) -> torch.Tensor:
        """The branches' part of `x` (N, A, ..): (B, A, C Q, ..)."""
        B, C, Q = self.branches
        return x[self.prompts[0] * self.prompts[1] :].unflatten(0, (B, C * Q)).transpose(1, 2)

    def to_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (G, ..) of the prompts, repeated for each of their rows: (B, ..)."""
        return x if self.row_B is None else x.index_select(0, self.row_B)

    def from_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (B, ..), summed over the rows of each prompt: (G, ..)."""
        if self.row_B is None:
            return x
        return x.new_zeros(self.prompts[0], *x.shape[1:]).index_add_(0, self.row_B, x)

    @cached_property
    def prompt_blocks(self) -> list[Block]:
        """Query blocks of the prompts, which attend to themselves only."""
        return causal_blocks(self.prompts[1])

    @cached_property
    def groups(self) -> list[Group]:
        """Groups of branches that attend in one call, with their masks."""
        (_, P), (_, C, Q) = self.prompts, self.branches
        prompt_BP = torch.ones(1, P, dtype=torch.bool)
        if self.length_G is not None:
            prompt_BP = torch.arange(P) < self.to_rows(self.length_G)[:, None]

        def blocks(branches: int) -> list[Block]:
            mask = tree_mask(prompt_BP, branches, Q)
            return [
                Block(queries, mask[:, :, queries, : P + queries.stop])
                for queries in cut_group(branches, Q)
            ]

        counts = grouped(C, Q)
        of_count, stops = {n: blocks(n) for n in set(counts)}, Q * np.cumsum(counts)
        return [
            Group(slice(stop - n * Q, stop), of_count[n])
            for n, stop in zip(counts, stops.tolist(), strict=True)
        ]


def tree_mask(prompt_BP: torch.Tensor, branches: int, tokens: int) -> torch.Tensor:
    """The additive mask (B, 1, n, P + n) of n = branches * tokens queries. Each query sees itself
    and the tokens before it in its own branch, and the prompt tokens that are true in `prompt_BP`.
    """
    own = torch.block_diag(
        *[torch.ones(tokens, tokens, dtype=torch.bool, device=prompt_BP.device).tril()] * branches
    )
    seen = [prompt_BP[:, None].expand(-1, len(own), -1), own.expand(len(prompt_BP), -1, -1)]
    return added(torch.cat(seen, dim=2))[:, None]


def added(seen: torch.Tensor) -> torch.Tensor:
    """The additive float32 mask (..) of `seen` (..): 0 where it is true, -inf elsewhere."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)


def causal_blocks(tokens: int) -> list[Block]:
    """Query blocks of a causal sequence."""
    queries = cut(tokens) if tokens else []
    last = queries[-1].start if queries else 0
    longest = max((q.stop - q.start for q in queries), default=0)
    # its first query is at column `last`
    strip = added(torch.arange(last + longest) <= last + torch.arange(longest)[:, None])
    return [
        Block(
            q,
            strip[None, None, : q.stop - q.start, last - q.start : last - q.start + q.stop]
            if q.start
            else None,
        )
        for q in queries
    ]


def causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Sequence[Block],
    scale: float,
) -> torch.Tensor:
    """Causal attention, without a gradient.

    Args:
        query, key, value: (M, A, T, D).
        blocks: of `causal_blocks`.
        scale: factor of the scores.

    Returns:
        (M, A, T, D).
    """
    output, sums = _empty(query.transpose(1, 2))
    output, sums = output.transpose(1, 2), sums.transpose(1, 2)
    _see(query, key, value, output, sums, blocks, scale)
    return output


def _empty(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors for output (.., A, D) and log-sums (.., A)."""
    sums = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
    return torch.empty_like(query, memory_format=torch.contiguous_format), sums


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        fork: Fork,
        scale: float,
    ) -> torch.Tensor:
        tensors = query, key, value, *_empty(query)
        q, k, v, o, s = map(fork.of_prompts, tensors)
        _see(q, k, v, o, s, fork.prompt_blocks, scale)
        shared = [fork.to_rows(fork.of_prompts(x)) for x in (key, value)]
        branches = [fork.of_branches(x) for x in tensors]
        for group in fork.groups:
            q, *own, o, s = (x[:, :, group.tokens] for x in branches)
            _see(q, *_behind(shared, own), o, s, group.blocks, scale)
        ctx.save_for_backward(*tensors)
        ctx.fork, ctx.scale = fork, scale
        return tensors[3]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        fork, tensors = ctx.fork, (gradient, *ctx.saved_tensors)
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[1:4]]
        of_prompts = list(map(fork.of_prompts, found))
        of_branches = [fork.of_branches(x) for x in found]
        if fork.prompt_blocks:
            g, q, k, v, o, s = map(fork.of_prompts, tensors)
            shares = _see_backward(g, q, k, v, o, s, of_prompts[0], fork.prompt_blocks, ctx.scale)
            for whole, share in zip(of_prompts[1:], shares, strict=True):
                whole.copy_(share)
        shared = [fork.to_rows(fork.of_prompts(x)) for x in tensors[2:4]]
        branches = [fork.of_branches(x) for x in tensors]
        P = fork.prompts[1]
        for group in fork.groups:
            g, q, *own, o, s = (x[:, :, group.tokens] for x in branches)
            of_query, *of_own = (x[:, :, group.tokens] for x in of_branches)
            shares = _see_backward(
                g, q, *_behind(shared, own), o, s, of_query, group.blocks, ctx.scale
            )
            for prompt, branch, share in zip(of_prompts[1:], of_own, shares, strict=True):
                prompt += fork.from_rows(share[:, :, :P])
                branch.copy_(share[:, :, P:])
        return *found, None, None


def _behind(
    shared: Sequence[torch.Tensor], own: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, A, P + T, D) of the prompts and of the branch tokens after them."""
    key, value = (torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True))
    return key, value


def _see(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    blocks: Sequence[Block],
    scale: float,
) -> None:
    """Writes the attention of the last T tokens of (M, A, .., D) into `output` (M, A, T, D), and
    the logs of their sums of exponentials into `sums` (M, A, T).
    """
    for block, keys, mask in _with_keys(query, key, blocks):
        output[:, :, block], sums[:, :, block] = kernel(
            query[:, :, block], key[:, :, keys], value[:, :, keys], mask, scale
        )


def _see_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    of_query: torch.Tensor,
    blocks: Sequence[Block],
    scale: float,
) -> list[torch.Tensor]:
    """Writes the query's gradient into `of_query` (M, A, T, D); returns those of key and value."""
    of_keys: list[torch.Tensor] = []
    # starts with the last block, which has all keys
    for block, keys, mask in reversed(list(_with_keys(query, key, blocks))):
        of_query[:, :, block], *shares = kernel_backward(
            gradient[:, :, block],
            query[:, :, block],
            key[:, :, keys],
            value[:, :, keys],
            output[:, :, block],
            sums[:, :, block],
            mask,
            scale,
        )
        of_keys = of_keys or shares
        for whole, share in zip(of_keys, shares, strict=True):
            if whole is not share:
                whole[:, :, keys] += share
    return of_keys


def _with_keys(
    query: torch.Tensor, key: torch.Tensor, blocks: Sequence[Block]
) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
    """The queries, the keys and the mask of each block."""
    before = key.shape[2] - query.shape[2]
    for block in blocks:
        yield block.queries, slice(before + block.queries.stop), block.mask


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by torch's CPU kernel.

    Args:
        query: (M, A, T, D).
        key, value: (M, A, S, D).
        mask: (M or 1, 1, T, S) added to the scores; None for causal.
        scale: factor of the scores.

    Returns:
        Output (M, A, T, D), and the log of each token's sum of exponentials (M, A, T).
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key,
        value,
        0.0,
        mask is None,
        attn_mask=None if mask is None else mask.to(query.dtype),
        scale=scale,
    )


def kernel_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward of `kernel`.

    Args:
        gradient: of the output.
        output, sums: what `kernel` returned for query, key, value and mask.

    Returns:
        Gradients of query (M, A, T, D), key and value (M, A, S, D).
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient,
        query,
        key,
        value,
        output,
        sums,
        0.0,
        mask is None,
        attn_mask=None if mask is None else mask.to(query.dtype),
        scale=scale,
    )
