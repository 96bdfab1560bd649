"""What pages show besides figures: examples of each latent, its tokens with b_t, samples side by
side, and the latents against strategies and on a plane.

Shapes: N records, K latents, C strategies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.discovery.latent_cards import CardRows, latent_cards, map_of, plane, texts_of
from twcli.discovery.probe import Probe
from twcli.discovery.rows import Rows
from twcli.evaluation.judged import Generations
from twcli.models import runtime
from twcli.training.setup import Setup

SHOWN = 4  # prompts whose completions are shown side by side
PIECES = 12  # records that are shown token by token
MOST_TOKENS = 600  # of each
TYPICAL = 2  # records on a card
NO_STRATEGY = "none known"


def evidence_of(
    *,
    posterior: np.ndarray,
    router: np.ndarray,
    labels: list[str | None],
    examples: list[Example],
    encoded: Encoded,
    encoder: ExampleEncoder,
    baseline_flat: np.ndarray | None,
    probe: Probe | None,
    prompts: np.ndarray,
    texts: list[list[str]],
    generations: Generations | None,
) -> dict[str, Any]:
    """What `page.evaluation_page` shows besides the figures.

    Args:
        posterior, router: (N, K) probabilities.
        baseline_flat: b_t of all records, one after the other; None without a frozen model.
        probe: records as points.
        prompts: the rows whose x was completed; `texts` holds the K completions of each.
        generations: the judged ones of them, where there is a judge that names strategies.

    Returns:
        `posterior_mean` and `router_mean` (K,), `strategies` (C,) and `matrix` (K, C) of posterior
        mass, `asked` (as `asked_and_obeyed`), `latent_cards`, `map`, `samples`, `texts`, and
        `provenance`.
    """
    strategies = sorted({label for label in labels if label is not None})
    is_strategy_NC = np.array([[label == name for name in strategies] for label in labels], float)
    latent_N = posterior.argmax(1)
    probability_N = posterior.max(1)
    distinct = Rows.of(encoded).rows
    chosen = CardRows.of(latent_N, probability_N, posterior.shape[1], distinct, TYPICAL)
    known = {row: examples[row] for row in chosen.rows}
    return {
        "posterior_mean": posterior.mean(0).tolist(),
        "router_mean": router.mean(0).tolist(),
        "strategies": strategies,
        "matrix": (posterior.T @ is_strategy_NC).tolist(),
        "asked": asked_and_obeyed(generations, posterior.shape[1]),
        "latent_cards": latent_cards(chosen, latent_N, probability_N, known, encoded.number),
        "map": probe and map_of(plane(probe.points, posterior[probe.rows]), latent_N[probe.rows]),
        "texts": []
        if baseline_flat is None
        else pieces_of(
            chosen,
            known,
            encoder,
            encoded,
            lambda row: baseline_flat[encoded.target_offsets[row] :],
        ),
        "provenance": runtime.versions(),
        "samples": [
            {"x": examples[row].x, "ys": ys}
            for row, ys in zip(prompts[:SHOWN], texts[:SHOWN], strict=True)
        ],
    }


def training_evidence(setup: Setup) -> dict[str, Any]:
    """What `page.training_page` shows of the records that were trained on, by the latents that they
    were named with; versions alone where there were no names. `renamed` is the share of them that
    training named otherwise than the naming, whose probabilities are shown.
    """
    latent_N = setup.latent_N
    encoded = setup.encoded
    evidence: dict[str, Any] = {"provenance": runtime.versions()}
    if not (latent_N >= 0).any():
        return evidence
    naming = setup.naming
    if naming is None:
        probability_N = np.ones(len(latent_N))
    else:
        probability_N = naming.probability_N
    latents = setup.model.latents
    distinct = Rows.of(encoded).rows
    if naming is not None:
        renamed_N = (naming.latent_N >= 0) & (naming.latent_N != latent_N)
        evidence["renamed"] = float(renamed_N[distinct].mean())
    chosen = CardRows.of(latent_N, probability_N, latents, distinct, TYPICAL)
    known = texts_of(setup.records, encoded, chosen.rows)
    evidence["latent_cards"] = latent_cards(chosen, latent_N, probability_N, known, encoded.number)
    if (probe := setup.probe) is not None:
        of_rows = latent_N[probe.rows]
        is_latent_NK = of_rows[:, None] == np.arange(latents)
        evidence["map"] = map_of(plane(probe.points, is_latent_NK.astype(float)), of_rows)
    if (cache := setup.cache) is not None:
        evidence["texts"] = pieces_of(
            chosen, known, setup.encoder, encoded, lambda row: cache.read(np.array([row]))[0]
        )
    return evidence


def asked_and_obeyed(generations: Generations | None, latents: int) -> dict[str, Any] | None:
    """`strategies` that the judge saw and `counts`, (K, C): how often each was written where a
    latent was asked for; None without a judge that names strategies.
    """
    if generations is None or not generations.named:
        return None
    seen = [NO_STRATEGY if s is None else s for s in generations.strategies]
    strategies = sorted(set(seen) - {NO_STRATEGY})
    if NO_STRATEGY in seen:
        strategies.append(NO_STRATEGY)
    number_G = np.array([strategies.index(s) for s in seen], int)
    counts = np.zeros((latents, len(strategies)), int)
    np.add.at(counts, (generations.latents, number_G), 1)
    return {"strategies": strategies, "counts": counts.tolist()}


def pieces_of(
    chosen: CardRows,
    examples: dict[int, Example],
    encoder: ExampleEncoder,
    encoded: Encoded,
    nats_of: Callable[[int], np.ndarray],
) -> list[dict[str, Any]]:
    """The most typical record of each latent, token by token with b_t.

    Args:
        nats_of: of a row, b_t of its tokens, and perhaps of more behind them.
    """
    found: list[dict[str, Any]] = []
    for latent, rows in enumerate(chosen.typical):
        if not len(rows) or len(found) == PIECES:
            continue
        row = int(rows[0])
        ids = encoded.y_ids(row)
        first = ids[:MOST_TOKENS]  # each piece is decoded with all before it
        nats = nats_of(row)[: len(first)].tolist()
        pieces = list(zip(encoder.pieces(first), nats, strict=True))
        more = len(first) < len(ids)
        found.append({"latent": latent, "x": examples[row].x, "pieces": pieces, "more": more})
    return found
