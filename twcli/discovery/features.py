"""What a frozen model's hidden states say of each completion: features to be clustered.

Two kinds: normalised states, averaged over y and over its first tokens; and similarities, which
earlier token of y and which token of x each part of y resembles, which say how y goes about x and
little of what x is about. Beside them the states of x, from which what the prompt contributes to
its completions' features is predicted. No label is read.

Shapes: N rows, R of them in a batch, F features, G features of x, T tokens, S supervised tokens,
H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import slices
from twcli.models.baseline import nll_of_pass
from twcli.models.forward import Layout, fast_batch_tokens, forward_rows

VERSION = 2  # of what is computed here, for files that keep it
FIRST_TOKENS = 8
# of y's tokens, finest where it begins
WINDOWS = ((0, 2), (2, 4), (4, 6), (6, 8), (8, 12), (12, 16), (16, 24), (24, None))
LAGS = 12
PROMPT_TOKENS = 24  # of x that y is compared with
# Of the model's depth: the middle layers represent what is said, the first and the last ones its
# words (Skean et al. 2025). A few of them say all, and cost less memory.
DEPTHS = (0.4, 0.6, 0.8)
SHALLOW = 5  # layers: so few have no middle, and all are taken

STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES = range(4)
KINDS = ("states", "first_states", "first_similarities", "later_similarities")


@dataclass(frozen=True)
class Features:
    """Of N rows.

    Attributes:
        kinds: (N, F) float32 each, numbered as the constants above.
        prompts: (N, G) float32, of each row's x: its mean state, and the state that y follows.
        lengths: (N,) float64, supervised tokens of y: what the means are taken over.
    """

    kinds: tuple[np.ndarray, ...]
    prompts: np.ndarray
    lengths: np.ndarray


def values_a_record(model: PreTrainedModel) -> int:
    """Numbers that `embed_rows` gives of a row, of all kinds and of x."""
    config = model.config.get_text_config()
    states = 4 * config.hidden_size  # of y, of its first tokens, and two of x
    similarities = len(WINDOWS) * (PROMPT_TOKENS + LAGS)
    return len(_layers_taken(config.num_hidden_layers)) * (states + similarities)


def _layers_taken(layers: int) -> list[int]:
    """The numbers of the layers whose states are features: all of a shallow model, else those at
    `DEPTHS`; 0 are the embeddings.
    """
    if layers <= SHALLOW:
        return list(range(layers + 1))
    return [round(depth * layers) for depth in DEPTHS]


def embed_rows(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    batch_tokens: int,
    varlen: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Features:
    """Features of distinct rows in any order; one forward pass each, without a gradient.

    Args:
        rows: (R,) row numbers.
        varlen: as in `forward.forward_rows`.
        advance: called with the number of rows after each batch.

    Returns:
        (R, width) of each kind.
    """
    return _read(
        model,
        encoder,
        encoded,
        rows,
        None,
        batch_tokens=batch_tokens,
        varlen=varlen,
        advance=(lambda places: advance(len(places))) if advance else None,
    )


def embed_and_score(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    batch_tokens: int,
    varlen: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Features, np.ndarray]:
    """What `embed_rows` and `baseline.score_flat` give, from one forward pass each.

    Args:
        rows: (R,) distinct row numbers, ascending.
        batch_tokens: most tokens of a batch, padding included.
        varlen: as in `forward.forward_rows`.
        progress: called with the number of tokens after each batch.

    Returns:
        The features, and b_t in nats (supervised tokens of the rows,), row after row.
    """

    def advance(places: np.ndarray) -> None:
        if progress:
            lengths = encoded.lengths[rows[places]]
            progress(int(lengths.sum()))

    nll = np.empty(encoded.target_lengths[rows].sum(), np.float32)
    features = _read(
        model,
        encoder,
        encoded,
        rows,
        nll,
        batch_tokens=batch_tokens,
        varlen=varlen,
        advance=advance,
    )
    return features, nll


def _read(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    nll: np.ndarray | None,
    *,
    batch_tokens: int,
    varlen: bool,
    advance: Callable[[np.ndarray], None] | None,
) -> Features:
    """The features of `rows`; fills `nll` with their b_t, row after row, where it is given.

    Args:
        advance: called with the positions in `rows` of each batch.
    """
    features: list[np.ndarray] = []
    targets = encoded.target_lengths[rows]
    starts = np.cumsum(targets) - targets
    read = partial(_pooled, model, encoder, encoded, scored=nll is not None)
    # the states of all layers lie in memory, of a batch a core
    batch_tokens = min(batch_tokens, fast_batch_tokens(model))
    for places, (values, found) in forward_rows(
        model, encoded, rows, read, batch_tokens=batch_tokens, varlen=varlen
    ):
        if not features:
            shapes = [(len(rows), value.shape[1]) for value in values]
            features = [np.empty(shape, np.float32) for shape in shapes]
        for feature, value in zip(features, values, strict=True):
            feature[places] = value
        if nll is not None:
            nll[slices(starts[places], targets[places])] = found
        if advance:
            advance(places)
    *kinds, prompts = features
    return Features(tuple(kinds), prompts, targets.astype(np.float64))


@torch.no_grad()
def _pooled(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    varlen: bool,
    scored: bool,
) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """(R, F) of a few layers, each kind, and last the features of x (R, G); beside them b_t of all
    targets, row after row, where the rows are scored.
    """
    prompts, targets = encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    device = model.device
    layout = Layout.of(model, encoder, encoded, rows, encoded.lengths[rows], varlen=varlen)
    first, x_lengths = encoded.x_starts[rows, None], encoded.x_lengths[rows]
    columns = np.arange(targets.max())
    x_columns = np.arange(PROMPT_TOKENS)
    active = torch.from_numpy(columns < targets[:, None]).to(device)
    in_prompt = torch.from_numpy(x_columns < x_lengths[:, None]).to(device)
    head = active & (torch.arange(len(columns), device=device) < FIRST_TOKENS)
    y_RS = layout.places(prompts[:, None] + 1 + columns)
    x_RX = layout.places(first + x_columns)
    # Once a prompt: a long one may have many short completions here.
    _, leaders, prompt_of_row = np.unique(
        encoded.prompt_index[rows], return_index=True, return_inverse=True
    )
    all_columns = np.arange(max(int(x_lengths.max()), 1))
    whole_x = torch.from_numpy(all_columns < x_lengths[leaders, None]).to(device)
    all_x_PX = layout.places(first + all_columns)[leaders]
    prompt_R = torch.from_numpy(prompt_of_row).to(device)
    last_x_R1 = layout.places(prompts[:, None])
    final, layers = layout.hidden(model, all_layers=True)
    features: list[list[torch.Tensor]] = [[] for _ in KINDS]
    mean_x: list[torch.Tensor] = []
    last_x: list[torch.Tensor] = []
    for layer in _layers_taken(len(layers) - 1):
        states = layers[layer].float()
        hidden = torch.nn.functional.layer_norm(states, states.shape[-1:])
        y = hidden[y_RS] * active[..., None]
        x = hidden[x_RX] * in_prompt[..., None]
        features[STATES].append(y.sum(1) / active.sum(1, keepdim=True))
        features[FIRST_STATES].append((y * head[..., None]).sum(1) / head.sum(1, keepdim=True))
        for (_, last), similar in zip(WINDOWS, _similarities(y, x, active), strict=True):
            late = last is None or last > FIRST_TOKENS
            features[LATER_SIMILARITIES if late else FIRST_SIMILARITIES].append(similar)
        sum_x = (hidden[all_x_PX] * whole_x[..., None]).sum(1)
        mean_x.append((sum_x / whole_x.sum(1, keepdim=True).clamp(min=1))[prompt_R])
        last_x.append(hidden[last_x_R1][:, 0])
    features.append(mean_x + last_x)
    if scored:
        nll = nll_of_pass(model, encoded, rows, layout, final)
    else:
        nll = None
    return tuple(torch.cat(kind, dim=1).cpu().numpy() for kind in features), nll


def _similarities(
    y_RSH: torch.Tensor, x_RXH: torch.Tensor, active_RS: torch.Tensor
) -> list[torch.Tensor]:
    """For each window of y: mean scalar product with each token of x, and with y's own token
    `lag` before, per dimension.
    """
    R, S, H = y_RSH.shape
    with_x = y_RSH @ x_RXH.transpose(1, 2) / H
    with_y = y_RSH.new_zeros(R, S, LAGS)
    for lag in range(1, min(LAGS, S - 1) + 1):
        with_y[:, lag:, lag - 1] = (y_RSH[:, lag:] * y_RSH[:, :-lag]).mean(-1)
    both = torch.cat([with_x, with_y], dim=2)
    means = []
    for first, last in WINDOWS:
        tokens = active_RS[:, first:last].sum(1, keepdim=True)
        means.append(both[:, first:last].sum(1) / tokens.clamp(min=1))
    return means
