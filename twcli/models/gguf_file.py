"""A model of the Llama family as a GGUF file, the format of llama.cpp, through the `gguf` package.

Only what can be written exactly is written: Llama's architecture with byte-level BPE whose
pre-tokenizer llama.cpp knows by name. For all else llama.cpp's own converter reads the folder of
`twcli export --to hf`; that script is in its repository and in no package.

Sources: the key and tensor names are those of the `gguf` package; queries and keys are reordered
because llama.cpp rotates neighbouring pairs, transformers halves of a head (Su et al. 2021).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError

FILE = "model.gguf"
CONVERTER = "export it with --to hf and run llama.cpp's convert_hf_to_gguf.py on that folder"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType
# The regular expression that splits text before BPE in Llama 3's tokenizer; llama.cpp knows it by
# name.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check(model_config: Any, encoder: ExampleEncoder, place: str) -> str:
    """The name that llama.cpp has for the tokenizer's way of splitting text.

    Args:
        model_config: the configuration of the transformers model.
        place: what the messages name.

    Raises:
        UserError: `gguf` is missing, or this model or tokenizer cannot be written exactly.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--to gguf: needs pip install 'twcli-cvae[gguf]'")
    if model_config.model_type != "llama":
        raise UserError(
            f"{place}: --to gguf writes Llama's architecture alone, and this is "
            f"{model_config.model_type}; {CONVERTER}"
        )
    rope = dict(getattr(model_config, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(
            f"{place}: --to gguf does not write {rope['rope_type']} rotary embeddings; {CONVERTER}"
        )
    name = splitting_of(json.loads(encoder.tokenizer.backend_tokenizer.to_str()))
    if name is None:
        raise UserError(
            f"{place}: --to gguf writes byte-level BPE tokenizers that split text as GPT-2, Llama "
            f"3 or SmolLM, and this one is another; {CONVERTER}"
        )
    return name


def splitting_of(state: dict[str, Any]) -> str | None:
    """llama.cpp's name for how this tokenizer splits text before BPE, None if it has none.

    Args:
        state: the tokenizer as `tokenizer.json` has it.
    """
    model = state["model"]
    splitter = state.get("pre_tokenizer") or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or state.get("normalizer"):
        return None
    steps = splitter.get("pretokenizers", [splitter])
    kinds = [step.get("type") for step in steps]
    if kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    own_split = steps[-1].get("use_regex", True)  # ByteLevel's is GPT-2's
    if kinds == ["ByteLevel"] and own_split:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own_split and steps[0].get("individual_digits"):
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex")
    if kinds == ["Split", "ByteLevel"] and not own_split and pattern == LLAMA3_SPLIT:
        return "llama-bpe"
    return None


def write(
    path: Path, model: PreTrainedModel, encoder: ExampleEncoder, name: str, splitting: str
) -> None:
    """Writes weights, tokenizer and the tokenizer's chat template; float32 or bfloat16 as the model
    is, one-dimensional weights always float32.

    Args:
        name: the model's name.
        splitting: the result of `check`.

    Raises:
        OSError: the disk is full.
    """
    import gguf

    config = model.config
    rope = dict(config.rope_parameters or {})
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    wide = model.dtype == torch.float32
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if wide else gguf.LlamaFileType.MOSTLY_BF16)
    _add_tokenizer(writer, encoder, config.vocab_size, splitting)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, weight in _weights(model):
        wanted = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if wanted is None:
            raise UserError(f"--to gguf: Llama has no weight {key}; {CONVERTER}")
        if ".q_proj." in key:
            weight = _neighbours(weight, config.num_attention_heads)
        elif ".k_proj." in key:
            weight = _neighbours(weight, config.num_key_value_heads)
        if wide or weight.ndim == 1:
            writer.add_tensor(wanted, weight.float().numpy())
        else:
            raw = weight.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(wanted, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights on the CPU, the output layer left out where it is the embeddings."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for key, weight in model.state_dict().items():
        if not (tied and key == "lm_head.weight"):
            yield key, weight.detach().cpu()


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows reordered within each head: the halves that transformers rotates become neighbours."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _add_tokenizer(writer: Any, encoder: ExampleEncoder, rows: int, splitting: str) -> None:
    """Writes the tokenizer's words, their kinds and its merges.

    Args:
        rows: of the embedding table, which may be more than there are words.
        splitting: the result of `check`.
    """
    tokenizer = encoder.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {id: token for token, id in tokenizer.get_vocab().items()}
    special = {id: token.special for id, token in tokenizer.added_tokens_decoder.items()}
    tokens = []
    kinds = []
    for id in range(rows):
        tokens.append(words.get(id, f"[PAD{id}]"))
        if id not in words:
            kinds.append(UNUSED)
        elif id in special:
            kinds.append(CONTROL if special[id] else USER_DEFINED)
        else:
            kinds.append(NORMAL)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    # the chat template writes the tokens that begin a prompt
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for add, id in (
        (writer.add_bos_token_id, encoder.bos),
        (writer.add_eos_token_id, encoder.ends[0]),
        (writer.add_eot_token_id, encoder.eos),
        (writer.add_pad_token_id, encoder.pad),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if id is not None:
            add(id)
    writer.add_chat_template(tokenizer.chat_template)
