"""Attention of sequences that continue shared prompts, with a GPU's flash kernels: no padding, no
mask, no copies of prompts.

    | prompt 1 | prompt 2 | .. | piece 1 of prompt 1 | piece 2 of prompt 1 | .. | piece 1 of 2 | ..

One call computes the causal attention of every prompt and every piece to itself; another computes
the attention of all pieces to their prompt. A piece's output is the average of the two, weighted by
their sums of exponentials. The kernels' backward pass needs only that sum per token, so two
backward calls with the joint sum give the joint gradient (Dao 2023, FlashAttention-2, section 3.1;
Juravsky et al. 2024, Hydragen, section 3.1, for the forward pass).

Shapes: N tokens, P of them in G prompts, the others in S pieces; A attention heads of size D, of
keys and values maybe fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

LARGEST_HEAD, MULTIPLE, AMPERE = 256, 8, (8, 0)  # limits of the kernels


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's matrix products."""
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.dtype


def head_size(model: PreTrainedModel) -> int:
    """Channels of an attention head; of the largest one where layers differ (Gemma 4)."""
    config = model.config.get_text_config()
    layers = getattr(config, "per_layer_config", None) or [config]
    sizes = [getattr(layer, "head_dim", None) or 0 for layer in layers]
    return max(sizes) or int(config.hidden_size // config.num_attention_heads)


def usable(model: PreTrainedModel) -> bool:
    """Whether the kernels support the model's attention heads on this device and in the current
    precision.
    """
    size = head_size(model)
    return (
        model.device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and size % MULTIPLE == 0
        and size <= LARGEST_HEAD
        and torch.cuda.get_device_capability(model.device) >= AMPERE
        and dtype_of(model) == torch.bfloat16
    )


@dataclass(frozen=True)
class Pieces:
    """Where prompts and pieces begin and end among N tokens.

    Attributes:
        own: (G + S + 1,) int32, ends of prompts and pieces, after a 0.
        prompts: (G + 1,) the same for the prompts alone.
        behind: (G + 1,) ends of all pieces of each prompt, among the N - P tokens of pieces, after
            a 0.
        prompt_tokens: P.
        longest, longest_prompt, longest_behind: maximum tokens of a sequence (prompt or piece), of
            a prompt, and of all pieces of one prompt.
        some_empty: whether a prompt may be empty.
    """

    own: torch.Tensor
    prompts: torch.Tensor
    behind: torch.Tensor
    prompt_tokens: int
    longest: int
    longest_prompt: int
    longest_behind: int
    some_empty: bool

    @classmethod
    def of(
        cls,
        prompt_G: torch.Tensor,
        piece_S: torch.Tensor,
        behind_G: torch.Tensor,
        *,
        prompt_tokens: int,
        longest_prompt: int,
        longest_piece: int,
        longest_behind: int,
        some_empty: bool,
    ) -> Pieces:
        """From lengths in tokens: of the prompts, of the pieces prompt by prompt, and of all pieces
        of each prompt.
        """

        def ends(lengths: torch.Tensor) -> torch.Tensor:
            sums = lengths.cumsum(0)
            from_zero = torch.nn.functional.pad(sums, (1, 0))
            return from_zero.int()

        return cls(
            ends(torch.cat([prompt_G, piece_S])),
            ends(prompt_G),
            ends(behind_G),
            prompt_tokens,
            max(longest_prompt, longest_piece),
            longest_prompt,
            longest_behind,
            some_empty,
        )

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of all tokens.

        Args:
            query, key, value: (1, A, N, D).
            scale: factor of the scores.

        Returns:
            (1, N, A, D) in the precision of `value`.
        """
        return _Attention.apply(
            *(x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value)), self, scale
        )[None]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: Pieces,
        scale: float,
    ) -> torch.Tensor:
        P = pieces.prompt_tokens
        output, sums = kernel(
            query, key, value, pieces.own, pieces.own, pieces.longest, pieces.longest, True, scale
        )
        if P < len(query):
            more, more_sums = kernel(
                query[P:],
                key[:P],
                value[:P],
                pieces.behind,
                pieces.prompts,
                pieces.longest_behind,
                pieces.longest_prompt,
                False,
                scale,
            )
            if pieces.some_empty:
                # the kernel returns +inf for an empty prompt
                more_sums = more_sums.masked_fill(more_sums == torch.inf, -torch.inf)
            share = torch.sigmoid(more_sums - sums[:, P:]).T[..., None]
            output[P:].lerp_(more, share.to(output.dtype))
            sums[:, P:] = torch.logaddexp(sums[:, P:], more_sums)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.pieces = pieces
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, sums = ctx.saved_tensors
        pieces = ctx.pieces
        P = ctx.pieces.prompt_tokens
        gradient = gradient.contiguous()
        of_query, of_key, of_value = kernel_backward(
            gradient,
            query,
            key,
            value,
            output,
            sums,
            pieces.own,
            pieces.own,
            pieces.longest,
            pieces.longest,
            True,
            ctx.scale,
        )
        if P < len(query):
            more = kernel_backward(
                gradient[P:],
                query[P:],
                key[:P],
                value[:P],
                output[P:],
                sums[:, P:].contiguous(),
                pieces.behind,
                pieces.prompts,
                pieces.longest_behind,
                pieces.longest_prompt,
                False,
                ctx.scale,
            )
            for whole, part in zip((of_query[P:], of_key[:P], of_value[:P]), more, strict=True):
                whole += part
        return of_query, of_key, of_value, None, None


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends_query: torch.Tensor,
    ends_key: torch.Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of concatenated sequences by torch's CUDA kernel.

    Args:
        query, key, value: (N, A, D), one sequence after the other.
        ends_query, ends_key: (sequences + 1,) int32, where each sequence begins, and where all end.
        longest_query, longest_key: tokens of the longest sequence.
        scale: factor of the scores.

    Returns:
        Output (N, A, D) and the log of each token's sum of exponentials (A, N).
    """
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        ends_query,
        ends_key,
        longest_query,
        longest_key,
        0.0,
        causal,
        False,
        scale=scale,
    )[:2]


def kernel_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    ends_query: torch.Tensor,
    ends_key: torch.Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward of `kernel`.

    Args:
        gradient: (N, A, D) of the output.
        query, key, value, ends_query, ends_key: what `kernel` was given.
        output, sums: what `kernel` returned for them.

    Returns:
        Gradients (N, A, D) of query, key and value.
    """
    no_dropout = (
        torch.zeros(2, dtype=torch.uint64, device=query.device),
        torch.empty(0, device=query.device),
    )
    return torch.ops.aten._flash_attention_backward(
        gradient,
        query,
        key,
        value,
        output,
        sums,
        ends_query,
        ends_key,
        longest_query,
        longest_key,
        0.0,
        causal,
        *no_dropout,
        scale=scale,
    )
