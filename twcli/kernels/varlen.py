"""Rows of any lengths as one sequence, without padding and with every prompt once, for a forward
pass without a gradient:

    | prompt 1 | prompt 2 | .. | y of row 1 | y of row 2 | ..

Layers that work token by token see real tokens only. Attention gathers rows of about equal length
into small padded groups, in one of two forms; for each prompt the cheaper one is chosen:

    whole   each row attends causally from its prompt's first token on; the prompt's scores are
            computed for each row
    apart   the prompt attends once, and each y under a mask to its prompt and to itself

With a GPU's flash kernels (see `flash`), nothing is gathered or padded.

Shapes: N tokens, G prompts, R rows; in a group B sequences, Q queries, T keys; A
attention heads of size D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from twcli.data.padding import budget_batches
from twcli.kernels.body import body_of, one_stream
from twcli.kernels.costs import COPY, causal_cost, masked_cost
from twcli.kernels.flash import Pieces
from twcli.kernels.packing import added, with_all_heads

# minimum number of groups in a batch: little padding, and scores fit in a CPU core's cache
LEAST_GROUPS = 3


@dataclass(frozen=True)
class Group:
    """Sequences that attend in one call: positions of their queries and keys among the N tokens.

    Attributes:
        query_BQ: padded on the right, with any token.
        key_BT: the same; equal to the queries if `mask` is None, which then attend causally.
        mask: added to the scores (B, 1, Q, T).
    """

    query_BQ: torch.Tensor
    key_BT: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Groups:
    """Attention of N tokens, group by group.

    Attributes:
        groups: every token is a query of at least one.
        place_N: position of a token's output in the concatenated outputs of all groups, padding
            included.
    """

    groups: list[Group]
    place_N: torch.Tensor

    @classmethod
    def of(
        cls, prompt_G: np.ndarray, row_R: np.ndarray, length_R: np.ndarray, device: torch.device
    ) -> Groups:
        """From prompts and rows as in `Varlen.of`."""
        G = len(prompt_G)
        P_R = prompt_G[row_R]
        lengths = np.concatenate([prompt_G, length_R])
        starts = np.cumsum(lengths) - lengths
        N = int(lengths.sum())
        whole_R = _whole(prompt_G, row_R, length_R)[row_R]
        whole = np.flatnonzero(whole_R)
        apart = np.flatnonzero(~whole_R)
        prompts = np.unique(row_R[apart])
        nothing = np.zeros(len(prompts), int)
        # (prompt's start and length, what follows' start and length, whether the prompt's tokens
        # are queries) of each sequence
        kinds = [
            (starts[row_R[whole]], P_R[whole], starts[G + whole], length_R[whole], True),
            (starts[prompts], prompt_G[prompts], nothing, nothing, True),
            (starts[row_R[apart]], P_R[apart], starts[G + apart], length_R[apart], False),
        ]
        groups = []
        place = np.empty(N, np.int64)
        before = 0
        for *sequences, causal in kinds:
            tokens = sequences[1] + sequences[3]
            for chosen in budget_batches(
                tokens, np.argsort(-tokens, kind="stable"), -(-N // LEAST_GROUPS)
            ):
                group, query, real = _group(
                    [values[chosen] for values in sequences], causal, device
                )
                place[query[real]] = before + np.flatnonzero(real)
                before += query.size
                groups.append(group)
        return cls(groups, torch.from_numpy(place).to(device))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of all tokens.

        Args:
            query, key, value: (1, A, N, D).
            scale: factor of the scores.

        Returns:
            (1, N, A, D).
        """
        query, key, value = (x[0].transpose(0, 1) for x in with_all_heads(query, key, value))

        def taken(x_NAD: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            """Tokens (N, heads, D) as padded rows (B, heads, T, D)."""
            rows = x_NAD.index_select(0, index.flatten())
            x_BTAD = rows.unflatten(0, index.shape)
            return x_BTAD.transpose(1, 2)

        outputs = []
        for group in self.groups:
            tensors = (
                taken(query, group.query_BQ),
                taken(key, group.key_BT),
                taken(value, group.key_BT),
            )
            if group.mask is None:
                mask = None
            else:
                mask = group.mask.to(query.dtype)
            output = F.scaled_dot_product_attention(
                *tensors, attn_mask=mask, is_causal=mask is None, scale=scale
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.place_N)[None]


@dataclass(frozen=True)
class Varlen:
    """The layout of G prompts and the rest of R rows in one sequence.

    Attributes:
        position_N: positions of a row's rest continue those of its prompt.
        attention: which tokens attend to which.
    """

    position_N: torch.Tensor
    attention: Groups | Pieces

    @classmethod
    def of(
        cls,
        prompt_G: np.ndarray,
        row_R: np.ndarray,
        length_R: np.ndarray,
        device: torch.device,
        *,
        kernels: bool = False,
    ) -> Varlen:
        """From the lengths of G prompts, the prompt of each row, in ascending order, and the tokens
        of each row after its prompt.

        Args:
            kernels: whether to use the flash kernels, i.e. `flash.usable`.
        """
        lengths = np.concatenate([prompt_G, length_R])
        first = np.concatenate([np.zeros(len(prompt_G), int), prompt_G[row_R]])
        starts = np.cumsum(lengths) - lengths
        position = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
        of = _pieces if kernels else Groups.of
        attention = of(prompt_G, row_R, length_R, device)
        return cls(torch.from_numpy(position).to(device), attention)


def _pieces(
    prompt_G: np.ndarray, row_R: np.ndarray, length_R: np.ndarray, device: torch.device
) -> Pieces:
    """The layout for the flash kernels.

    Args:
        prompt_G: tokens of each prompt.
        row_R: the prompt of each row.
        length_R: tokens of each row behind its prompt.
    """
    behind_G = np.bincount(row_R, length_R, len(prompt_G)).astype(int)
    return Pieces.of(
        *(torch.from_numpy(x).to(device) for x in (prompt_G, length_R, behind_G)),
        prompt_tokens=int(prompt_G.sum()),
        longest_prompt=int(prompt_G.max()),
        longest_piece=int(length_R.max()),
        longest_behind=int(behind_G.max()),
        some_empty=not prompt_G.all(),
    )


def _whole(prompt_G: np.ndarray, row_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """(G,) whether the rows of a prompt attend as whole sequences, by `costs`."""
    all_R = prompt_G[row_R] + length_R
    costs = causal_cost(all_R), masked_cost(length_R, all_R, COPY)
    whole_G, apart_G = (np.bincount(row_R, cost_R, len(prompt_G)) for cost_R in costs)
    return whole_G <= apart_G + causal_cost(prompt_G)


def _group(
    sequences: list[np.ndarray], causal: bool, device: torch.device
) -> tuple[Group, np.ndarray, np.ndarray]:
    """The group, its queries as an array, and which of them are real."""
    first_B, prompt_B, second_B, length_B = (values[:, None] for values in sequences)

    def index(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where each token of the padded rows lies in the pass, whether it is one), (B, columns).

        Padding points at its row's first token.
        """
        in_prompt = first_B + columns
        behind_prompt = second_B + columns - prompt_B
        at = np.where(columns < prompt_B, in_prompt, behind_prompt)
        real = columns < prompt_B + length_B
        places = np.where(real, at, at[:, :1])
        return places, real

    key, real = index(np.arange(int((prompt_B + length_B).max())))
    key_BT = torch.from_numpy(key).to(device)
    if causal:
        return Group(key_BT, key_BT, None), key, real
    own = np.arange(int(length_B.max()))
    query, real = index(prompt_B + own)
    seen = np.arange(key.shape[1]) <= (prompt_B + own)[:, :, None]
    mask = added(torch.from_numpy(seen))[:, None]
    return Group(torch.from_numpy(query).to(device), key_BT, mask.to(device)), query, real


def varlen_hidden_states(
    model: PreTrainedModel, input_ids_N: torch.Tensor, layout: Varlen, *, all_layers: bool = False
) -> Any:
    """Last hidden states (N, H), equal to those of each row run alone; with `all_layers` a pair of
    these and the tuple of every layer's, embeddings first. The model's attention must be
    `packing.ATTENTION`.
    """
    output = body_of(model)(
        input_ids=input_ids_N[None],
        position_ids=layout.position_N[None],
        use_cache=False,
        packed=layout.attention,
        output_hidden_states=all_layers,
    )
    last = output.last_hidden_state
    if not all_layers:
        return last[0]
    return last[0], tuple(one_stream(states, last.shape)[0] for states in output.hidden_states)
