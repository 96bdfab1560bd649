"""A tiny word-level tokenizer and tiny models with non-trivial weights, made in a
second and never downloaded.
"""

import json
import random

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from twcli.data.encoder import ExampleEncoder
from twcli.data.vocabulary import TAGS
from twcli.discovery import repeating as repeating_module
from twcli.discovery import search as search_module
from twcli.discovery import ways as ways_module
from twcli.discovery.centring import Centring
from twcli.models.runtime import quiet_transformers

quiet_transformers()
# tiny models gain nothing from more, and lose much where others use the cores
torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(20)]
# Two processes over gloo; with --cpu it would start one, unless there is MPI. A port of its own
# lets several jobs run side by side.
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>", *TAGS]


def make_tokenizer():
    vocabulary = {word: i for i, word in enumerate(SPECIALS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(TAGS),
    )


def make_model(seed=0, hidden=32, layers=2, positions=128, initializer=0.3, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + len(WORDS),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=initializer,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def in_double(model):
    """The model in float64 throughout: a Llama's own norm works in float32
    whatever its weights are.
    """
    for layer in model.modules():
        for name, child in list(layer.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(layer, name, norm)
    return model.double()


def make_records(prompts=6, completions=2, seed=0):
    """Prompts of one to six words with `completions` distinct completions
    of one to nine words each.
    """
    rng = random.Random(seed)
    records = []
    for p in range(prompts):
        x = " ".join([WORDS[p % 20], *rng.choices(WORDS, k=rng.randint(0, 5))])
        for c in range(completions):
            y = " ".join([WORDS[c], *rng.choices(WORDS, k=rng.randint(0, 8))])
            records.append({"x": x, "y": y, "strategy": f"s{c}", "id": f"{p}-{c}"})
    return records


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def encoder():
    return ExampleEncoder(make_tokenizer(), "tiny")


@pytest.fixture
def data_file(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", make_records())


def encode(encoder, records, max_length=128):
    from twcli.data.example import Example

    return encoder.encode(
        [Example(r["x"], r["y"]) for r in records], max_length=max_length, source="data.jsonl"
    )


def judge(x, y):
    """Strategy s0, s1, ... by y's first word; right where x's first word is not in y."""
    words = y.split()
    strategy = f"s{words[0][1:]}" if words and words[0] in WORDS[:3] else None
    return strategy, x.split()[0] not in words


def broken_judge(_x, _y):
    return 1 / 0


def make_strategies(prompts=24, completions=1, latents=3, seed=0, again=0.0):
    """Records whose strategies even a model with random weights tells from each other: each writes
    words of its own. With the probability `again` it writes what it wrote before for the prompt.
    """
    rng = random.Random(seed)
    records = []
    for p in range(prompts):
        x = " ".join([WORDS[p % 20], *rng.choices(WORDS, k=rng.randint(1, 4)), WORDS[p // 20]])
        written = {}
        for c in range(completions):
            k = rng.randrange(latents)
            if k not in written or rng.random() >= again:
                written[k] = " ".join(rng.choices(WORDS[5 * k : 5 * k + 4], k=rng.randint(4, 7)))
            records.append({"x": x, "y": written[k], "strategy": f"s{k}", "id": f"{p}-{c}"})
    return records


def strategies_of(records):
    """(N,) the strategy of each record."""
    return np.array([int(record["strategy"][1:]) for record in records])


FEWER = {
    (ways_module, "KMEANS_DIRECTIONS"): (6,),
    (ways_module, "OTHER_DIRECTIONS"): (12,),
    (ways_module, "FINE_CLUSTERS"): (3,),
    (ways_module, "RESTARTS"): 1,
    (search_module, "HALVINGS"): 1,
    (repeating_module, "ABOVE"): 1,
    (repeating_module, "_workers"): lambda: 1,  # processes would not have these numbers
}
ALL = {(module, name): getattr(module, name) for module, name in FEWER}


@pytest.fixture(scope="session", autouse=True)
def few_ways():
    """Names are searched in a few ways, or every training would take seconds to begin."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in FEWER.items():
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_line_a_fact():
    """What is said is not folded, so that tests can search in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        yield


@pytest.fixture
def all_ways(monkeypatch):
    """Names are searched in all ways, as users have it."""
    for (module, name), value in ALL.items():
        monkeypatch.setattr(module, name, value)


def matched(clusters, truth, latents):
    counts = np.zeros((latents, truth.max() + 1))
    np.add.at(counts, (clusters, truth), 1)
    return counts[linear_sum_assignment(-counts)].sum() / len(truth)


def centred(features, sizes, keep):
    features = features.copy()
    Centring.fit((features,), sizes, keep=keep)((features,), sizes)
    return features


@pytest.fixture(scope="session")
def strategies():
    """(points, sizes, truth): a vector a strategy plus a prompt offset ten times its size and
    noise; 2 to 4 completions.
    """
    rng = np.random.default_rng(0)
    centroids = 2 * rng.normal(size=(4, 6))
    sizes, truth, points = [], [], []
    for _ in range(150):
        chosen = rng.choice(4, rng.integers(2, 5), replace=False)
        values = (
            centroids[chosen] + 20 * rng.normal(size=6) + 0.4 * rng.normal(size=(len(chosen), 6))
        )
        points.append(values - values.mean(0))
        sizes.append(len(chosen))
        truth.append(chosen)
    return np.concatenate(points), sizes, np.concatenate(truth)


@pytest.fixture(scope="session")
def pairs():
    """(features of one kind, sizes, truth): a vector a strategy, and twelve dimensions of which
    half hold the prompt's content.
    """
    rng = np.random.default_rng(11)
    centroids = np.concatenate([2 * rng.normal(size=(4, 6)), np.zeros((4, 6))], axis=1)
    truth = np.array([rng.choice(4, 2, replace=False) for _ in range(400)])
    content = rng.normal(size=(400, 1, 12)) * np.repeat([0.5, 20], 6)
    features = centroids[truth] + content + 0.4 * rng.normal(size=(400, 2, 12))
    return features.reshape(800, 12).astype(np.float32), [2] * 400, truth.ravel()
