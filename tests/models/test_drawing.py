"""Draws that share their prompt: the same as plain generation, and from the right distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from tests.conftest import SPECIALS, WORDS, make_model, make_tokenizer
from twcli.data.encoder import ExampleEncoder
from twcli.models import drawing
from twcli.models.drawing import Request, draw, why_not_shared
from twcli.models.generation import generate

PROMPTS = [[1, 4, 12], [1, 4, 13, 14, 15, 16, 5], [], [1, 4, 20, 5]]


def request(draws=3, sections=2, limit=9):
    G = len(PROMPTS)
    ids = np.array([[[8, 12 + k, 9, 6] for k in range(sections)] for _ in range(G)])
    rows = np.array([(g, k) for g in range(G) for k in range(sections) for _ in range(draws)])
    limits = limit - np.arange(len(rows)) % 3
    return Request(PROMPTS, ids, rows[:, 0], rows[:, 1], limits)


def drawn(model, asked, temperature=1.0, seed=0, **settings):
    encoder = ExampleEncoder(make_tokenizer(), "tiny")
    return draw(
        model,
        encoder,
        asked,
        temperature=temperature,
        seed=seed,
        batch_tokens=500,
        **settings,
    )


@pytest.fixture(scope="module")
def model():
    return make_model()


def gpt2(_seed=0):
    torch.manual_seed(0)
    vocabulary = len(SPECIALS) + len(WORDS)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    ).eval()


@pytest.mark.parametrize("make", [make_model, gpt2])
def test_greedy_draws_are_those_of_plain_generation(make):
    model, asked = make(), request()
    assert why_not_shared(model, asked, 0) is None
    encoder = ExampleEncoder(make_tokenizer(), "tiny")
    expected = generate(
        model,
        encoder,
        [asked.ids(row) for row in range(len(asked.prompt_R))],
        max_new_tokens=asked.limit_R,
        temperature=0.0,
        seed=0,
        batch_tokens=1,  # one row a batch: no padding
    )
    assert drawn(model, asked, temperature=0.0) == expected
    assert len(set(expected[0])) > 3  # the model says something of its own on each prompt


@pytest.mark.slow
def test_what_a_row_draws_does_not_depend_on_its_batch(model, monkeypatch):
    asked = request(draws=4)
    counted = []
    whole = drawn(model, asked, progress=lambda rows, tokens: counted.append((rows, tokens)))
    monkeypatch.setattr(drawing, "MOST_ROWS", 11)
    assert drawn(model, asked) == whole
    monkeypatch.setattr(drawing, "CACHE_BYTES", 1)
    assert drawn(model, asked) == whole
    assert drawn(model, asked, seed=1) != whole
    assert sum(rows for rows, _ in counted) == 32
    assert sum(tokens for _, tokens in counted) <= asked.limit_R.sum()
    texts, ended = whole
    assert 0 < sum(ended) < len(ended)
    for text, limit, finished in zip(texts, asked.limit_R, ended, strict=True):
        assert len(text.split()) <= limit - finished


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_models_distribution(model, temperature):
    """First tokens of 8,000 draws against the softmax of the plain forward pass."""
    count, section = 8000, np.array([[[8, 12, 9, 6]]])
    rows = np.zeros(count, np.int64)
    asked = Request([PROMPTS[0]], section, rows, rows, rows + 1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([asked.ids(0)])).logits[0, -1]
    shares = (logits / temperature).softmax(-1).numpy()
    batch = drawing._Batch(model, asked, np.arange(count), 0)
    with torch.no_grad():
        ids = [each[0] for each in batch.draw([2], temperature, seed=3)]
    found, expected = np.bincount(ids, minlength=len(shares)), shares.astype(float) * count
    often = expected >= 5  # the others count as one
    if not often.all():
        found, expected = (np.append(v[often], v[~often].sum()) for v in (found, expected))
    assert chisquare(found, expected * count / expected.sum()).pvalue > 1e-4


def test_a_model_that_cannot_share_its_prompt_is_completed_plainly(monkeypatch):
    vocabulary = len(SPECIALS) + len(WORDS)
    torch.manual_seed(0)
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, state_size=4)
    ).eval()
    asked = request(draws=2, limit=4)
    asked = Request(
        [[1], *PROMPTS[1:2], [1], [1]],
        asked.sections_GKC,
        asked.prompt_R,
        asked.section_R,
        asked.limit_R,
    )
    assert why_not_shared(mamba, asked, 0) is not None
    counted = []
    texts, ended = drawn(mamba, asked, progress=lambda rows, _tokens: counted.append(rows))
    assert len(texts) == len(ended) == sum(counted) == len(asked.prompt_R)


def test_a_model_that_reads_padding_is_found_out(model, monkeypatch):
    asked = request()
    real = drawing._Batch._hidden

    def blind(self, ids_RT, positions_RT):
        self.mask = torch.ones_like(self.mask)
        return real(self, ids_RT, positions_RT)

    monkeypatch.setattr(drawing._Batch, "_hidden", blind)
    assert "of the logits" in why_not_shared(model, asked, 0)
