"""A tokenizer's vocabulary and its file: the tags that templates need, new tokens, and whether what
was saved is what is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twcli.data.template import Ending, Template
from twcli.errors import UserError

SECTION_TAGS = ("<z>", "</z>")
TAGS = ("<x>", "</x>", "<y>", "</y>", *SECTION_TAGS)


def default_template(tokenizer: Any) -> str:
    """What `--template auto` stands for: a chat model has never seen the tags, and b_t under them
    would be that of a text that it cannot read.
    """
    vocabulary = tokenizer.get_vocab()
    tagged = all(tag in vocabulary for tag in TAGS if tag not in SECTION_TAGS)
    if tokenizer.chat_template and not tagged:
        return "chat"
    return "tags"


def tags_template(tokenizer: Any) -> Template:
    """The template `tags`: x and y between tags of one token each, which the vocabulary holds."""
    vocabulary = tokenizer.get_vocab()
    x_open, x_close, y_open, y_close = (vocabulary[tag] for tag in TAGS[:4])
    bos = tokenizer.bos_token_id
    opening = [x_open] if bos is None else [bos, x_open]
    begin = tokenizer.bos_token or ""
    return Template(
        "tags",
        f"{begin}<x>{{x}}</x>{{z}}<y>{{y}}</y>{tokenizer.eos_token}",
        before_x=opening,
        before_z=[x_close],
        before_y=[y_open],
        after_y=[y_close, tokenizer.eos_token_id],
        ending=Ending(y_close),
    )


def check_vocabulary(tokenizer: Any, source: str, tags: Sequence[str]) -> None:
    """Raises UserError where the tokenizer lacks one of the tags, or a token that ends a text."""
    vocabulary = tokenizer.get_vocab()
    missing = [tag for tag in tags if tag not in vocabulary]
    how = "add it to the tokenizer"
    if tokenizer.eos_token is None:
        missing.append("eos_token")
        how = (
            'set "eos_token" in its tokenizer_config.json to the token that ends a text, such as '
            "</s>"
        )
    if missing:
        raise UserError(f"{source}: the tokenizer has no {', '.join(missing)}; {how}")


def add_tags(tokenizer: Any, template: Template | None) -> list[str]:
    """Adds the tags that the template needs and the vocabulary lacks; returns them."""
    vocabulary = tokenizer.get_vocab()
    tags = TAGS if template is None else SECTION_TAGS
    added = [tag for tag in tags if tag not in vocabulary]
    add_tokens(tokenizer, added)
    return added


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Adds tokens at the end of the vocabulary; they are never split."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )


def state_hash(tokenizer: Any) -> str:
    """sha256 over vocabulary, merges and normalisation, without padding and truncation state."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def save_tokenizer(tokenizer: Any, folder: Path, source: str) -> None:
    """Saves a tokenizer so that it loads as it is.

    Some classes of tokenizers are made again when they are loaded, from settings that transformers
    does not save, such as `legacy` of Llama's: then the file is to be taken as it is.

    Raises:
        UserError: what was saved does not load as the tokenizer that it was.
    """
    tokenizer.save_pretrained(folder)
    if _loads_as(tokenizer, folder):
        return
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not _loads_as(tokenizer, folder):
        raise UserError(
            f"{folder}: the tokenizer of {source} is another one when it is saved and loaded "
            "again; save it once with transformers as a fast tokenizer, then run the command again"
        )


def _loads_as(tokenizer: Any, folder: Path) -> bool:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return state_hash(loaded) == state_hash(tokenizer)
