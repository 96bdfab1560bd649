import numpy as np
import pytest
import torch

from tests.conftest import WORDS, make_model
from twcli.errors import UserError
from twcli.models.generation import generate


@pytest.fixture
def ids_as_texts(encoder, monkeypatch):
    def decode(ids):
        ends = [place for place, token in enumerate(ids) if token in (encoder.y_close, encoder.eos)]
        return tuple(ids[: ends[0]] if ends else ids)

    monkeypatch.setattr(encoder, "decode", decode)
    return encoder


def test_draws_are_of_the_model_alone_whatever_its_own_settings_are(ids_as_texts):
    model = make_model()
    model.resize_token_embeddings(200)
    # nearly even, so that the first 50 hold a quarter
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    (
        model.generation_config.top_k,
        model.generation_config.repetition_penalty,
        model.generation_config.do_sample,
    ) = 1, 9.0, True
    draws, _ = generate(
        model,
        ids_as_texts,
        [[1, 5]] * 4000,
        max_new_tokens=1,
        temperature=1.0,
        seed=0,
        batch_tokens=10**5,
    )
    share = np.bincount([ids[0] for ids in draws if ids], minlength=200) / 4000
    with torch.no_grad():
        expected = model(torch.tensor([[1, 5]])).logits[0, -1].softmax(-1).numpy()
    expected[[ids_as_texts.y_close, ids_as_texts.eos]] = 0.0  # texts end before them
    assert abs(share - expected).max() < 5 * np.sqrt(expected.max() / 4000)
    assert model.generation_config.top_k == 1  # put back


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("batch_tokens", [10**5, 150])
def test_a_long_prompt_cuts_no_other_completion_short(ids_as_texts, batch_tokens, ends):
    model = make_model()
    if not ends:
        with torch.no_grad():
            model.lm_head.weight[[ids_as_texts.y_close, ids_as_texts.eos]] = 0.0
    prompts = [[1, *[20 + i % 7 for i in range(length)]] for length in (3, 90, 9, 3, 118)]
    limits = 128 - np.asarray([len(prompt) for prompt in prompts])
    done = []
    texts, ended = generate(
        model,
        ids_as_texts,
        prompts,
        max_new_tokens=limits,
        temperature=0.0,
        seed=0,
        batch_tokens=batch_tokens,
        progress=done.append,
    )
    assert sum(done) == 5
    for prompt, most, text, end in zip(prompts, limits.tolist(), texts, ended, strict=True):
        (alone,), _ = generate(
            model,
            ids_as_texts,
            [prompt],
            max_new_tokens=most,
            temperature=0.0,
            seed=0,
            batch_tokens=1,
        )
        assert text == alone and (len(text) == most) == (not end)
    assert set(ended) == {ends}


def test_a_prompt_is_refused_like_a_record(encoder):
    for x, says in (("", "has no token"), ("  ", "has no token"), ("w0 </x> <z>", "contains </x>")):
        for prompt in (encoder.prompt, encoder.router_prompt):
            with pytest.raises(UserError, match=says):
                prompt(x)
    assert encoder.prompt(WORDS[0])
