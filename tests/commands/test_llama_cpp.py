"""llama.cpp itself reads what `twcli export --to gguf` writes: the same ids, log-probabilities and
completions under each latent as transformers.

Optional: `pip install xllamacpp`, llama.cpp's server as a library with wheels for most systems.
"""

import json
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands.test_export import ASK, asked, make_chat_run
from tests.test_cli import ok

xllamacpp = pytest.importorskip("xllamacpp")

TOKENS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a chat model as a folder and as a GGUF file."""
    folder = tmp_path_factory.mktemp("made")
    make_chat_run(folder)
    for form in ("hf", "gguf"):
        call = ("export", "--run", folder / "run", "--to", form, "--out", folder / form)
        ok(*call, "--name", "2=code")
    return folder


@pytest.fixture(scope="module")
def address(made):
    """llama.cpp's server with the file."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(made / "gguf" / "model.gguf")
    settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
    server = xllamacpp.Server(settings)
    yield server.listening_address
    del server


def post(url, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_ids_logits_and_completions_under_each_latent_are_those_of_transformers(made, address):
    tokenizer = AutoTokenizer.from_pretrained(made / "hf")
    model = AutoModelForCausalLM.from_pretrained(made / "hf").eval()
    written = []
    for latent in (0, 1, "code"):
        ids = asked(tokenizer, latent=latent)
        text = tokenizer.decode(ids)
        tokenised = {"content": text, "parse_special": True, "add_special": False}
        assert post(f"{address}/tokenize", tokenised)["tokens"] == ids
        prompt = torch.tensor([ids])
        with torch.no_grad():
            output = model.generate(
                prompt,
                max_new_tokens=TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        own = output.sequences[0, len(ids) :].tolist()
        nats = [
            logits[0].log_softmax(-1)[id].item()
            for logits, id in zip(output.logits, own, strict=True)
        ]
        body = {"temperature": 0, "max_tokens": TOKENS, "logprobs": True}
        line = {"role": "system", "content": f"latent: {latent}"}
        for messages, extra in (
            ([line, *ASK], {}),
            (ASK, {"chat_template_kwargs": {"latent": latent}}),
        ):
            answer = post(f"{address}/v1/chat/completions", {"messages": messages, **body, **extra})
            assert answer["usage"]["prompt_tokens"] == len(ids)
            found = answer["choices"][0]["logprobs"]["content"]
            assert [one["id"] for one in found] == own
            # its cache of keys and values is in float16
            assert [one["logprob"] for one in found] == pytest.approx(nats, abs=5e-3)
        written.append(own)
    assert written[0] != written[1]


def test_eval_takes_completions_from_llama_cpp(made, address):
    call = ("eval", "--run", made / "run", "--data", made / "data.jsonl", "--bootstrap", 20)
    result = ok(*call, "--max-new-tokens", 8, "--json", "--server", address)
    assert "12 of 12 greedy completions begin as the run's own" in result.stderr
    assert json.loads(result.stdout)["served"]
