"""Attention of branches that go on from shared prompts on a CPU, a block of queries at a time.

Torch's CPU kernel computes nearly all that a causal mask hides, and to packed branches it could only give either a copy of the prompt each,
or the scores of all with all. So queries are cut into blocks that are given the keys up to their last one: a block of a prompt that
prompt's, a block of branches their prompt's and their own. What is hidden is computed within a block only, and each sum is taken in the
order in which the kernel takes it for a branch alone.

Shapes: N tokens; G prompts of up to P tokens, B rows of C branches of up to Q; M sequences of T tokens; A attention heads of size D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

BLOCK = 64  # queries: few enough that little is hidden, many enough for fast matrix products
STEP = 32  # queries in each of the kernel's own products
TOGETHER = 128  # queries of short branches that are one block


def usable(device: torch.device) -> bool:
    """Whether torch has the kernel there."""
    return device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def cut(tokens: int) -> list[slice]:
    """Blocks of about `BLOCK` of so many queries, less than `BLOCK + 2 * STEP` each."""
    count = max(1, round(tokens / BLOCK))
    bounds = [tokens * i // count // STEP * STEP for i in range(count)] + [tokens]
    return [slice(*pair) for pair in pairwise(bounds)]


def grouped(branches: int, tokens: int) -> list[int]:
    """How many branches of so many tokens each are given keys together."""
    together = min(max(1, TOGETHER // tokens), branches)
    return [min(together, branches - first) for first in range(0, branches, together)]


def cut_group(branches: int, tokens: int) -> list[slice]:
    """Blocks of the queries of so many branches: of one by itself, or of all."""
    return cut(tokens) if branches == 1 else [slice(0, branches * tokens)]


def reads(P: int, C: int, Q: int) -> tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]:
    """(queries, keys) of each call of the kernel for a prompt and, group by group, for the C branches of a row."""
    def sizes(blocks: list[slice], before: int) -> list[tuple[int, int]]:
        return [(block.stop - block.start, before + block.stop) for block in blocks]

    return sizes(cut(P), 0) if P else [], [sizes(cut_group(n, Q), P) for n in grouped(C, Q)]


@dataclass(frozen=True)
class Group:
    """Branches of a row that are given keys together, those of their prompt first.

    Attributes:
        tokens: T of the row's C Q.
        blocks: of those T.
        mask: added to the scores (B or 1, 1, T, P + T).
    """

    tokens: slice
    blocks: list[slice]
    mask: torch.Tensor

    @property
    def masks(self) -> list[torch.Tensor]:
        before = self.mask.shape[3] - self.mask.shape[2]
        return [self.mask[:, :, block, : before + block.stop] for block in self.blocks]


@dataclass(frozen=True)
class Fork:
    """Prompts, and the branches that go on from them, all padded on the right, as N = G P + B C Q tokens one after another.

    Attributes:
        prompts: (G, P).
        branches: (B, C, Q).
        row_B: the prompt of each row; None where row i goes on from prompt i.
        length_G: tokens of each prompt; None where all have P.
    """

    prompts: tuple[int, int]
    branches: tuple[int, int, int]
    row_B: torch.Tensor | None
    length_G: torch.Tensor | None

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention's output (N, A, D) from (N, A, D), in the precision of `value`."""
        return _Attention.apply(query.to(value.dtype), key.to(value.dtype), value, self, scale)

    def of_prompts(self, x: torch.Tensor) -> torch.Tensor:
        """(G, A, P, ..) of (N, A, ..)."""
        return x[: self.prompts[0] * self.prompts[1]].unflatten(0, self.prompts).transpose(1, 2)

    def of_branches(self, x: torch.Tensor) -> torch.Tensor:
        """(B, A, C Q, ..) of (N, A, ..)."""
        B, C, Q = self.branches
        return x[self.prompts[0] * self.prompts[1] :].unflatten(0, (B, C * Q)).transpose(1, 2)

    def to_rows(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..) of (G, ..)."""
        return x if self.row_B is None else x.index_select(0, self.row_B)

    def from_rows(self, x: torch.Tensor) -> torch.Tensor:
        """(G, ..) of (B, ..), summed up."""
        return x if self.row_B is None else x.new_zeros(self.prompts[0], *x.shape[1:]).index_add_(0, self.row_B, x)

    @cached_property
    def prompt_blocks(self) -> list[slice]:
        P = self.prompts[1]
        return cut(P) if P else []

    @cached_property
    def prompt_masks(self) -> list[torch.Tensor | None]:
        return causal_masks(self.prompt_blocks)

    @cached_property
    def groups(self) -> list[Group]:
        (_, P), (_, C, Q) = self.prompts, self.branches
        prompt = torch.ones(1, P, dtype=torch.bool)
        if self.length_G is not None:
            prompt = torch.arange(P) < self.to_rows(self.length_G)[:, None]

        def mask(branches: int) -> torch.Tensor:
            own = torch.block_diag(*[torch.ones(Q, Q, dtype=torch.bool).tril()] * branches)
            return _added(torch.cat([prompt[:, None].expand(-1, len(own), -1), own.expand(len(prompt), -1, -1)], dim=2))[:, None]

        counts = grouped(C, Q)
        masks, stops = {n: mask(n) for n in set(counts)}, Q * np.cumsum(counts)
        return [Group(slice(stop - n * Q, stop), cut_group(n, Q), masks[n]) for n, stop in zip(counts, stops.tolist(), strict=True)]


def causal_masks(blocks: Sequence[slice]) -> list[torch.Tensor | None]:
    """For each block of a sequence what is added to its scores (1, 1, n, stop); None for the first, which is plainly causal."""
    last = blocks[-1].start if blocks else 0
    longest = max((block.stop - block.start for block in blocks), default=0)
    strip = _added(torch.arange(last + longest) <= last + torch.arange(longest)[:, None])  # its first query stands at column `last`
    return [strip[None, None, : b.stop - b.start, last - b.start : last - b.start + b.stop] if b.start else None for b in blocks]


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Sequence[slice], masks: Sequence[torch.Tensor | None],
           scale: float) -> torch.Tensor:
    """What each of T tokens sees of itself and those before (M, A, T, D), without a gradient; `masks` are `causal_masks`."""
    output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    for block, keys, mask in _with_keys(query, key, blocks, masks):
        output[:, :, block], _ = kernel(query[:, :, block], key[:, :, keys], value[:, :, keys], mask, scale)
    return output


def _added(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, fork: Fork, scale: float) -> torch.Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = output.new_empty(output.shape[:2], dtype=torch.promote_types(output.dtype, torch.float32))
        tensors = query, key, value, output, sums
        _see(*map(fork.of_prompts, tensors), fork.prompt_blocks, fork.prompt_masks, scale)
        shared, branches = [fork.to_rows(fork.of_prompts(x)) for x in (key, value)], [fork.of_branches(x) for x in tensors]
        for group in fork.groups:
            q, *own, o, s = (x[:, :, group.tokens] for x in branches)
            _see(q, *_behind(shared, own), o, s, group.blocks, group.masks, scale)
        ctx.save_for_backward(*tensors)
        ctx.fork, ctx.scale = fork, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        fork, tensors = ctx.fork, (gradient, *ctx.saved_tensors)
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[1:4]]
        of_prompts, of_branches = list(map(fork.of_prompts, found)), [fork.of_branches(x) for x in found]
        if fork.prompt_blocks:
            shares = _see_backward(*map(fork.of_prompts, tensors), of_prompts[0], fork.prompt_blocks, fork.prompt_masks, ctx.scale)
            for whole, share in zip(of_prompts[1:], shares, strict=True):
                whole.copy_(share)
        shared, branches = [fork.to_rows(fork.of_prompts(x)) for x in tensors[2:4]], [fork.of_branches(x) for x in tensors]
        P = fork.prompts[1]
        for group in fork.groups:
            g, q, *own, o, s = (x[:, :, group.tokens] for x in branches)
            of_query, *of_own = (x[:, :, group.tokens] for x in of_branches)
            shares = _see_backward(g, q, *_behind(shared, own), o, s, of_query, group.blocks, group.masks, ctx.scale)
            for prompt, branch, share in zip(of_prompts[1:], of_own, shares, strict=True):
                prompt += fork.from_rows(share[:, :, :P])
                branch.copy_(share[:, :, P:])
        return *found, None, None


def _behind(shared: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Keys and values (B, A, P + T, D) of prompts and of what follows them."""
    return [torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True)]


def _see(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, sums: torch.Tensor, blocks: Sequence[slice],
         masks: Sequence[torch.Tensor | None], scale: float) -> None:
    """Puts into `output` (M, A, T, D) what the last T of (M, A, .., D) tokens see, and into `sums` (M, A, T) their logs of sums."""
    for block, keys, mask in _with_keys(query, key, blocks, masks):
        output[:, :, block], sums[:, :, block] = kernel(query[:, :, block], key[:, :, keys], value[:, :, keys], mask, scale)


def _see_backward(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
                  sums: torch.Tensor, of_query: torch.Tensor, blocks: Sequence[slice], masks: Sequence[torch.Tensor | None],
                  scale: float) -> list[torch.Tensor]:
    """Puts the gradient of the query into `of_query` (M, A, T, D), and gives those of key and value."""
    of_keys: list[torch.Tensor] = []
    for block, keys, mask in reversed(list(_with_keys(query, key, blocks, masks))):  # the last block is given all keys
        of_query[:, :, block], *shares = kernel_backward(gradient[:, :, block], query[:, :, block], key[:, :, keys], value[:, :, keys],
                                                         output[:, :, block], sums[:, :, block], mask, scale)
        of_keys = of_keys or shares
        for whole, share in zip(of_keys, shares, strict=True):
            if whole is not share:
                whole[:, :, keys] += share
    return of_keys


def _with_keys(query: torch.Tensor, key: torch.Tensor, blocks: Sequence[slice], masks: Sequence[torch.Tensor | None]
               ) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
    before = key.shape[2] - query.shape[2]
    for block, mask in zip(blocks, masks, strict=True):
        yield block, slice(before + block.stop), mask


def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
           ) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (M, A, T, D) and the log of each token's sum of exponentials (M, A, T), causal where there is no mask."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, mask is None, attn_mask=None if mask is None else mask.to(query.dtype), scale=scale)


def kernel_backward(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
                    sums: torch.Tensor, mask: torch.Tensor | None, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, output, sums, 0.0, mask is None, attn_mask=None if mask is None else mask.to(query.dtype), scale=scale)
