"""The frozen model's per-token NLL b_t of y: what `twcli precompute` computes.

Shapes: R rows, T tokens, S supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.long_rows import SKIP
from twcli.data.padding import slices
from twcli.kernels.head import token_nll
from twcli.kernels.packing import ATTENTION, attention_of, why_not_packed
from twcli.models.agreement import NATS, why_not
from twcli.models.forward import Layout, forward_rows, ids_on, read_lengths, within_window
from twcli.models.positions import pass_lengths

COMPARED_ROWS = 8


@torch.no_grad()
def _score(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    varlen: bool,
) -> np.ndarray:
    """NLL in nats of all targets, row after row."""
    lengths = read_lengths(model, encoded, rows)
    layout = Layout.of(model, encoder, encoded, rows, lengths, varlen=varlen)
    return nll_of_pass(model, encoded, rows, layout, layout.hidden(model))


def nll_of_pass(
    model: PreTrainedModel,
    encoded: Encoded,
    rows: np.ndarray,
    layout: Layout,
    hidden: torch.Tensor,
) -> np.ndarray:
    """NLL in nats of all targets of `rows`, row after row, from the last hidden states (.., H) of a
    pass over them.
    """
    prompts = encoded.prompt_lengths[rows]
    targets = encoded.target_lengths[rows]
    before = torch.from_numpy(slices(layout.rest_R, targets)).to(model.device)
    first_target = encoded.offsets[rows] + prompts + 1
    ids = encoded.ids[slices(first_target, targets)]
    nll = token_nll(model, hidden[before], ids_on(model, ids))
    return nll.cpu().numpy()


def why_not_varlen(model: PreTrainedModel, encoder: ExampleEncoder, encoded: Encoded) -> str | None:
    """Why this model must score rows separately and padded, or None if varlen scoring is correct.
    Scores a few rows both ways.

    These are the first rows whose prompt occurs more than once, and the first rows of the data.
    """
    if reason := why_not_packed(model, trained=False):
        return reason
    within = within_window(model, encoded.lengths)
    if lengths := pass_lengths(model):  # rows that may share a pass
        classes = lengths.classes(encoded.lengths)
        within &= classes == classes[within.argmax()]
    several = np.bincount(encoded.prompt_index)[encoded.prompt_index] > 1
    shared = np.flatnonzero(within & several)
    any_rows = np.flatnonzero(within)
    half = COMPARED_ROWS // 2
    rows = np.union1d(shared[:half], any_rows[:half])
    if not len(rows):
        return None
    model.eval()

    def difference() -> float:
        """Largest difference of a token's b_t between the two ways, in nats."""
        padded = _score(model, encoder, encoded, rows, varlen=False)
        with attention_of(model, ATTENTION):
            flat = _score(model, encoder, encoded, rows, varlen=True)
        apart = np.abs(padded - flat)
        return float(apart.max())

    return why_not("scoring rows without padding", difference, NATS[model.dtype], "nats")


def score_flat(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    batch_tokens: int,
    varlen: bool = False,
    progress: Any = None,
) -> np.ndarray:
    """b_t as the cache stores it.

    Args:
        rows: (R,) distinct row numbers, ascending.
        batch_tokens: most tokens of a batch, padding included.
        varlen: as in `forward_rows`.
        progress: called with the number of tokens after each batch.

    Returns:
        (supervised tokens of the rows,) float32 in nats, row after row.
    """
    targets = encoded.target_lengths[rows]
    starts = np.cumsum(targets) - targets
    flat = np.empty(targets.sum(), np.float32)
    read = partial(_score, model, encoder, encoded)
    for places, nll in forward_rows(
        model, encoded, rows, read, batch_tokens=batch_tokens, varlen=varlen
    ):
        flat[slices(starts[places], targets[places])] = nll
        if progress:
            progress(int(encoded.lengths[rows[places]].sum()))
    return flat


def weights_hash(model: PreTrainedModel) -> str:
    """sha256 over every parameter and buffer: name, dtype, shape and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        shape = tuple(tensor.shape)
        digest.update(f"{name}|{tensor.dtype}|{shape}|".encode())
        values = tensor.detach().cpu().contiguous()
        content = values.view(-1).view(torch.uint8)
        digest.update(content.numpy())
    return digest.hexdigest()


def _too_long(encoder: ExampleEncoder, encoded: Encoded) -> dict[str, Any]:
    """What was done with rows that are too long, and the tokens that they were counted with."""
    if not encoded.too_long:
        return {}
    if encoder.latent_tokens > 1:
        several = {"latent_tokens": encoder.latent_tokens}
    else:
        several = {}
    return several | {"too_long": encoded.too_long}


def fingerprint(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    *,
    max_length: int,
    precision: str,
    attention: str,
    empty: int = 0,
) -> dict[str, Any]:
    """Everything that b_t depends on; a cache is used only if all of it is equal.

    Args:
        empty: records that were left out since they have no text.

    Only the first field that differs is reported, so causes come before their consequences.
    """
    return {
        "dtype": precision,
        "attention": attention,
        "max_length": max_length,
        "weights": weights_hash(model),
        "tokenizer": encoder.tokenizer_hash(),
        "template": encoder.fingerprint(),
        **_too_long(encoder, encoded),
        **({"empty": {SKIP: empty}} if empty else {}),
        "data": encoded.data_hash(),
    }
