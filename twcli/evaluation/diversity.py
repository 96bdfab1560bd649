"""How different the samples of a prompt are, without a judge, and how well z is read back.

Shapes: P prompts, N samples a prompt, H features, K latents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import entr

from twcli.discovery.information import information as information_of
from twcli.errors import UserError

WORD = re.compile(r"\w+|[^\w\s]")
ORDERS = (1, 2, 3)  # of n-grams
BLEU_SAMPLES = 8  # of a prompt that are compared with each other: their number enters squared


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of the n-grams of words in some texts that are distinct (Li et al. 2016, arXiv
    1510.03055); NaN where no text has n words.
    """
    grams = []
    for text in texts:
        words = WORD.findall(text)
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if grams:
        return len(set(grams)) / len(grams)
    return float("nan")


def vendi_score(features_NH: np.ndarray) -> float:
    """The effective number of distinct samples: exp of the entropy of the eigenvalues of the
    samples' cosine similarities, divided by their number (Friedman and Dieng 2023, arXiv
    2210.02410). 1 where all are alike, N where all are orthogonal.
    """
    lengths = np.linalg.norm(features_NH, axis=1, keepdims=True)
    # a sample without direction is like itself only
    directed = lengths > 0
    unit = np.where(directed, features_NH / np.where(directed, lengths, 1.0), 0.0)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 1.0)
    eigenvalues = np.linalg.eigvalsh(similarity / len(similarity))
    entropy = entr(np.clip(eigenvalues, 0.0, None)).sum()
    return float(np.exp(entropy))


def self_bleu(samples: Sequence[Sequence[str]]) -> float | None:
    """BLEU of each of a prompt's samples against its others (Zhu et al. 2018, arXiv 1802.01886), in
    percent: 100 where all are alike. Corpus BLEU over the prompts for each sample's number, then
    the mean. None where no prompt has two samples.
    """
    scores = []
    samples = [texts[:BLEU_SAMPLES] for texts in samples if len(texts) > 1]
    most = max(map(len, samples), default=0)
    for number in range(most):
        those = [texts for texts in samples if number < len(texts)]
        scored = [texts[number] for texts in those]
        others = [_without(texts, number) for texts in those]
        scores.append(corpus_bleu(scored, others))
    if scores:
        return float(np.mean(scores))
    return None


def reference_bleu(
    samples: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[float, float] | None:
    """(BLEU of the samples against a prompt's references, BLEU of the references themselves), in
    percent, both with one reference left out, so that they compare (Shen et al. 2019, arXiv
    1902.07816): the mean over which one is left out, against all others. None where no prompt has
    two different references.
    """
    kept = []
    for texts, of_prompt in zip(samples, references, strict=True):
        several = list(dict.fromkeys(of_prompt))[:BLEU_SAMPLES]
        if len(several) > 1 and texts:
            kept.append((texts[:BLEU_SAMPLES], several))
    if not kept:
        return None
    ours = []
    theirs = []
    for left_out in range(max(len(several) for _, several in kept)):
        those = [(texts, several) for texts, several in kept if left_out < len(several)]
        rests = [_without(several, left_out) for _, several in those]
        theirs.append(corpus_bleu([several[left_out] for _, several in those], rests))
        written: list[str] = []
        against: list[list[str]] = []
        for (texts, _), rest in zip(those, rests, strict=True):
            written += texts
            against += [rest] * len(texts)
        ours.append(corpus_bleu(written, against))
    return float(np.mean(ours)), float(np.mean(theirs))


def _without(texts: Sequence[str], number: int) -> list[str]:
    """All texts but one."""
    return [*texts[:number], *texts[number + 1 :]]


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """sacrebleu's corpus BLEU in percent.

    Args:
        texts: what is scored.
        references: for each text its own references, any number of them.

    Raises:
        UserError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise UserError("BLEU needs: pip install 'twcli-cvae[eval]'") from error
    most = max(map(len, references))
    # sacrebleu takes None where a text has fewer references; its types do not say so
    streams: Any = [
        [each[i] if i < len(each) else None for each in references] for i in range(most)
    ]
    # the texts are tokenised as they come; sacrebleu would warn of it
    return float(BLEU(force=True).corpus_score(list(texts), streams).score)


def information(table_KK: np.ndarray) -> float | None:
    """Mutual information in nats of the latents drawn and read back, from their counts."""
    total = table_KK.sum()
    if not total:
        return None
    joint_KK = table_KK / total
    read_back = entr(joint_KK).sum() - entr(joint_KK.sum(1)).sum()  # entropy, given what was drawn
    nats, _ = information_of(joint_KK.sum(0), float(read_back))
    return nats
