"""Is a cache what plain transformers says? Every row, one at a time, from a
chat model's own template.

    twcli precompute --model MODEL --data F.jsonl --template chat --out F.h5
    python examples/check_baseline.py --model MODEL --data F.jsonl --baseline F.h5

Nothing of twcli takes part but the reading of the cache: the prompt is rendered by
`apply_chat_template`, x and y are tokenised each by itself, the model reads one row and gives the
logits of every position. Prints the largest difference in nats, and exits with 1 where it is above
`--limit`. Needs `gguf` where MODEL is a GGUF file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from twcli.storage.cache import Cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--limit", type=float, default=1e-4, help="nats a token")
    options = parser.parse_args()
    place, settings = options.model, {}
    if place.endswith(".gguf"):
        place, settings = str(Path(place).parent), {"gguf_file": Path(place).name}
    tokenizer = AutoTokenizer.from_pretrained(place, **settings)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **settings).eval()
    records = [
        json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()
    ]
    differences, sums, joint = [], [], 0
    with Cache(options.baseline) as cache:
        stored, lengths = cache.read(np.arange(cache.rows))
        rows = np.split(stored, np.cumsum(lengths)[:-1])
    if len(rows) != len(records):
        sys.exit(f"{options.baseline}: {len(rows)} rows, the data have {len(records)}")
    for record, row in zip(records, rows, strict=True):
        prompt, target, text = ids_of(tokenizer, record["x"], record["y"])
        joint += (
            tokenizer(text, add_special_tokens=False)["input_ids"][: len(prompt) + len(target)]
            == prompt + target
        )
        nll = score(model, prompt, target)
        differences.append(float(np.abs(nll - row).max()))
        sums.append(float(np.abs(nll.sum(dtype=np.float64) - row.sum(dtype=np.float64))))
    print(
        f"{len(rows)} rows, {sum(map(len, rows)):,} tokens; largest difference "
        f"{max(differences):.1e} nats a token, {max(sums):.1e} nats a row; "
        f"{joint} rows have the ids that tokenising the whole text at once gives"
    )
    sys.exit(max(differences) > options.limit)


def ids_of(tokenizer, x: str, y: str) -> tuple[list[int], list[int], str]:
    """(ids up to y, ids of y and its end, the rendered text)."""

    def render(user: str, assistant: str) -> str:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
            tokenize=False,
        )

    before, rest = render("PLACE-X", "PLACE-Y").split("PLACE-X")
    between, after = rest.split("PLACE-Y")
    head, middle, close = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, between, after)
    )
    x_ids, y_ids = (
        tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for part in (x, y)
    )
    return head + x_ids + middle, [*y_ids, close[0]], render(x, y)


@torch.no_grad()
def score(model, prompt: list[int], target: list[int]) -> np.ndarray:
    """NLL of each target token in nats, float32."""
    logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(
        logits.float(), torch.tensor(target), reduction="none"
    ).numpy()


if __name__ == "__main__":
    main()
