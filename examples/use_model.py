"""A trained run's model with plain transformers: one completion under each latent.

    python examples/use_model.py --model RUN/model --x "14 3 9 0 7"

Nothing of twcli is imported. The latents are tokens of the vocabulary; the frame around x is the
tags' or the one in `RUN/model/template.txt`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--model", required=True)
parser.add_argument("--x", required=True)
parser.add_argument("--max-new-tokens", type=int, default=64)
options = parser.parse_args()

try:
    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
except (OSError, ValueError) as error:
    parser.error(f"--model {options.model}: {str(error).splitlines()[0]}")
file = Path(options.model) / "template.txt"
template = (
    file.read_text(encoding="utf-8")
    if file.is_file()
    else f"{tokenizer.bos_token or ''}<x>{{x}}</x>{{z}}<y>{{y}}"
)
latents: dict[int, dict[int, str]] = {}
for token in tokenizer.get_added_vocab():
    if match := re.fullmatch(r"<z(\d+)(?:\.(\d+))?>", token):
        latents.setdefault(int(match[1]), {})[int(match[2] or 0)] = token

chat = "latent_sections" in (getattr(tokenizer, "chat_template", None) or "")
for k in sorted(latents):
    section = f"<z>{''.join(token for _, token in sorted(latents[k].items()))}</z>"
    if chat:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": options.x}],
            add_generation_prompt=True,
            latent=k,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        text = template.split("{y}")[0].replace("{z}", section).replace("{x}", options.x)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        do_sample=False,
        max_new_tokens=options.max_new_tokens,
    )
    answer = output[0, prompt["input_ids"].shape[1] :]
    print(f"--- z{k}\n{tokenizer.decode(answer, skip_special_tokens=True)}")
