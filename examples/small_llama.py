"""The model that `entangle.py` trains: a word-level tokenizer and a small Llama, as plain Hugging
Face folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.data.vocabulary import TAGS

HEADS = 4


def make_tokenizer(examples: Sequence[Example]) -> PreTrainedTokenizerFast:
    """Every word of the data is one token; what lies between words is a single space."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", *TAGS]
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=0, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator((text for e in examples for text in (e.x, e.y)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )


def make_model(
    encoder: ExampleEncoder, longest: int, *, layers: int, hidden: int, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights, and positions for a latent and for completions longer than any
    seen.

    Args:
        longest: tokens of a row of the data.
    """
    positions = max(256, 2 * longest + 64)
    encoder.tokenizer.model_max_length = positions
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder.tokenizer),
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            bos_token_id=encoder.bos,
            eos_token_id=encoder.eos,
            pad_token_id=encoder.pad,
        )
    )


def save(model: LlamaForCausalLM, encoder: ExampleEncoder, out: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=encoder.bos,
        eos_token_id=[encoder.y_close, encoder.eos],
        pad_token_id=encoder.pad,
    )
    model.save_pretrained(out)
    encoder.tokenizer.save_pretrained(out)
