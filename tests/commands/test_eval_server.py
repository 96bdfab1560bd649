"""`twcli eval --server`, against a server that has the exported folder in this process.

test_export.py has `transformers serve`.
"""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from tests.commands.test_export import make_bytes_tokenizer, make_chat_model, make_run
from tests.commands.test_sample_server import Handler, Standin, running
from tests.conftest import write_jsonl
from tests.test_cli import ok, refused, twcli
from twcli.evaluation import served as evaluation_served
from twcli.models import served

FLAGS = ("--json", "--bootstrap", 20, "--judge", f"{__name__}:judge", "--max-new-tokens", 12)
# of completions at temperature 1, which no two writers draw alike
DRAWN = ("served", "judge")


def judge(_x, y):
    return ("odd" if len(y) % 2 else "even"), "a" in y


class Exported(Handler):
    """Answers with what the exported model writes."""

    def do_GET(self):
        names = self.server.names
        self.answer(200, {"object": "list", "data": [{"id": n, "object": "model"} for n in names]})

    def complete(self, body):
        server = self.server
        with server.lock, torch.no_grad():
            server.answered += 1
            if server.then and server.answered == server.then[0]:
                server.then[1]()
            try:
                prompt = server.tokenizer.apply_chat_template(
                    server.read(body["messages"]),
                    tools=body.get("tools"),
                    add_generation_prompt=True,
                    return_dict=False,
                )
            except Exception as error:
                return self.answer(400, {"error": {"message": str(error)}})
            ids = torch.tensor([prompt])
            set_seed(body.get("seed", 0))
            written = server.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=body["max_tokens"],
                do_sample=body["temperature"] > 0,
            )[0, len(prompt) :]
        text = server.tokenizer.decode(written, skip_special_tokens=True)
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(written)}
        return self.answer(200, {"choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a chat model on conversations, and its exported folder."""
    folder = tmp_path_factory.mktemp("made")
    system = {"role": "system", "content": "be terse"}
    records = [
        {
            "messages": [
                *([system] if p % 2 else []),
                {"role": "user", "content": f"what is {p}"},
                {"role": "assistant", "content": f"{'ab'[c]} {p}"},
            ]
        }
        for p in range(6)
        for c in range(2)
    ]
    write_jsonl(folder / "data.jsonl", records)
    tokenizer = make_bytes_tokenizer()
    make_run(folder, tokenizer, make_chat_model(tokenizer), "--template", "chat", "--adapt", "full")
    ok("export", "--run", folder / "run", "--to", "hf", "--out", folder / "out")
    return folder


@pytest.fixture
def server(made, monkeypatch):
    monkeypatch.setattr(served, "TRIES", 0)
    for file in (made / "run").glob("s*.jsonl"):
        file.unlink()
    with running(Standin(Exported)) as server:
        server.names = ["out"]
        server.tokenizer = AutoTokenizer.from_pretrained(made / "out")
        server.model = AutoModelForCausalLM.from_pretrained(made / "out").eval()
        server.read = lambda messages: messages
        yield server


def flags(made, server, *more):
    common = ("eval", "--run", made / "run", "--data", made / "data.jsonl", *FLAGS)
    return (*common, "--server", server.url, *more)


def figures(result):
    found = json.loads(result.stdout)
    return {name: value for name, value in found.items() if name not in DRAWN}


def of_greedy(found):
    """The figures that completions at temperature 1 have no part in."""
    return {name: found[name] for name in ("posterior", "alignment", "answer_accuracy", "score")}


@pytest.mark.slow
def test_the_figures_are_those_of_the_run_itself(made, server):
    local = ok(*flags(made, server)[:-2])
    result = ok(*flags(made, server))
    assert of_greedy(figures(result)) == of_greedy(figures(local))
    assert json.loads(result.stdout)["served"] == "out"
    assert json.loads(local.stdout)["served"] is None
    assert "out; 12 of 12 greedy completions begin as the run's own" in result.stderr
    completions = [body for _, body in server.requests if body["max_tokens"] == 12]
    # each of 6 prompts under 3 latents, greedy and drawn
    assert len(completions) == 36 and {body["temperature"] for body in completions} == {0.0, 1.0}
    server.requests.clear()
    again = ok(*flags(made, server))
    assert figures(again) == figures(result) and "were drawn before" in again.stderr
    assert not [body for _, body in server.requests if body["max_tokens"] == 12]


@pytest.mark.slow
def test_what_is_stopped_resumes(made, server, monkeypatch):
    monkeypatch.setattr(evaluation_served, "BLOCK", 12)
    one = ("--concurrency", 3)
    whole = ok(*flags(made, server, *one))
    (made / "run" / "served.jsonl").unlink()
    server.then = (server.answered + 13 + 14, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = twcli(*flags(made, server, *one))
    assert result.exit_code == 143, result.stderr
    assert "finished blocks of 2 prompts are kept; " in result.stderr
    server.then, server.dies_after = None, server.answered + 13 + 14
    result = twcli(*flags(made, server, *one))
    assert result.exit_code == 1 and "resuming: " in result.stderr
    assert "the server does not answer" in result.stderr.splitlines()[-1]
    server.dead, server.dies_after = False, None
    server.requests.clear()
    result = ok(*flags(made, server, *one))
    assert figures(result) == figures(whole)
    assert len([body for _, body in server.requests if body["max_tokens"] == 12]) == 12


@pytest.mark.slow
def test_samples_of_the_run_come_from_the_server(made, server):
    result = json.loads(ok(*flags(made, server, "--samples", 4)).stdout)
    assert set(result["sampling"]["arms"]) == {"frozen", "even", "proportional", "router"}
    lines = (made / "run" / "samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["header"]["fingerprint"]["run_served"] == "out"
    drawn = [body for _, body in server.requests if body["temperature"] == 1.0]
    counts = sum(len(ys) for line in lines[1:] for ys in json.loads(line)["latents"])
    # and one of each prompt under each latent, for the judge
    assert len(drawn) == counts + 18


@pytest.mark.slow
def test_without_a_judge_a_few_are_drawn_for_the_page(made, server):
    server.names = ["a", "b"]
    common = ("eval", "--run", made / "run", "--data", made / "data.jsonl", "--bootstrap", 20)
    ok(*common, "--server", server.url, "--served-model", "b", "--max-new-tokens", 12)
    assert {body["model"] for _, body in server.requests} == {"b"}
    assert len([body for _, body in server.requests if body["max_tokens"] == 12]) == 12
    assert not (made / "run" / "served.jsonl").exists()


@pytest.mark.slow
def test_another_model_is_refused_before_anything_is_drawn(made, server, monkeypatch):
    def says(*texts):
        server.requests.clear()
        refused(*flags(made, server), says=texts)
        assert not [body for _, body in server.requests if body["max_tokens"] == 12]

    server.names = ["a", "b"]
    says("has 2 models; give --served-model")
    server.names = ["out"]
    plain = AutoTokenizer.from_pretrained(made / "model")
    with monkeypatch.context() as patch:
        patch.setattr(server, "tokenizer", plain)
        says("out answers for a latent that does not exist, so it is no exported run; serve the")
    with monkeypatch.context() as patch:
        more = lambda m: [*m[:-1], {**m[-1], "content": m[-1]["content"] + "?"}]  # noqa: E731
        patch.setattr(server, "read", more)
        says("tokens, and the run was trained on", "add no chat template or begin token")
    with monkeypatch.context() as patch:
        torch.manual_seed(1)
        other = make_chat_model(plain)
        other.resize_token_embeddings(server.model.config.vocab_size)
        patch.setattr(server, "model", other.eval())
        says("0 of 12 greedy completions begin as the run's own, so out is another model")


@pytest.mark.slow
def test_calls_that_cannot_be_meant_are_refused(made):
    common = ("eval", "--run", made / "run", "--data", made / "data.jsonl")
    refused(*common, "--served-model", "m", says="--served-model: is a name at --server")
    address = ("--server", "http://127.0.0.1:9")
    result = twcli(*common, *address, "--quiet")
    assert result.exit_code == 1 and "no server answers there" in result.stderr
    refused(*common, "--server", "here", says="give a URL such as http://")


@pytest.mark.parametrize("both", [True, False])
def test_blocks_and_so_random_numbers_do_not_depend_on_the_connections(both):
    writer = SimpleNamespace(latents=[[1], [2], [3]])
    blocks = {
        evaluation_served.ServedCompletions(
            SimpleNamespace(concurrency=concurrency), writer, [], 9, both
        ).block
        for concurrency in (1, 128, 129, 4096)
    }
    assert len(blocks) == 1
