"""Tiny tokenizers and chat templates of the forms that people's models have, written after the
public descriptions of the formats. Nothing of twcli is imported.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = [
    "Hello the model reads one row. What is 2 and 2? It is 4.",
    "You are terse. Answer in one word, user and assistant and system.",
    "weather in Paris? Let me check. two and two are four",
    "def add(a, b):\n    return a + b\n\n\n  INST s human gpt turn end",
    "Be brief; café naïve, übung. 123 + 456 = 579",
]
ROLE_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]
WORDS = [
    *" ".join(TEXTS).split(),
    *("user", "assistant", "system", "tool", ":", "[INST]", "[/INST]", "###", "<think>"),
    *("</think>", "Today", "is", "26", "Jul", "2024", "END", "two", "4", "x", "y"),
]


def _special(tokenizer, **settings):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=ROLE_TOKENS,
        **settings,
    )


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return _special(tokenizer)


def _sentencepiece_like(prepend):
    """A BPE over `▁` with byte fallback. `prepend` is Metaspace's scheme, or "normalizer" as the
    oldest conversions have it: every piece of text between special tokens gets a `▁`.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    scheme = "always" if prepend == "normalizer" else prepend
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.pre_tokenizer = metaspace
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=8,
    )
    # Words apart, so that no token crosses a space.
    tokenizer.train_from_iterator([word for text in TEXTS for word in text.split()], trainer)
    if prepend == "normalizer":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    # The trainer takes bytes for special tokens; in the models' files they are ordinary ones.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _special(tokenizer)


def word_level():
    words = ["<unk>", "<s>", "</s>", *dict.fromkeys(WORDS)]
    tokenizer = Tokenizer(
        models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _special(tokenizer)


@functools.cache
def _trained_sentencepiece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def model_file_only(folder: Path, legacy: bool = False):
    """A folder that has `tokenizer.model` and settings, but no `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_trained_sentencepiece())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ROLE_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


TOKENIZERS = {
    "byte-level": byte_level,
    "sentencepiece": lambda: _sentencepiece_like("first"),
    "sentencepiece-legacy": lambda: _sentencepiece_like("always"),
    "sentencepiece-oldest": lambda: _sentencepiece_like("normalizer"),
    "word-level": word_level,
}

# After the templates that the model families publish; the comments say what is particular.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # white space is stripped, BOS is in the template
    "strips": (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}"
        "{{ m.content | trim }}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    ),
    # Llama 3: tells the date; tools; calls end in another token
    "date": (
        "{{- bos_token }}\n{%- if not date_string is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is ' + date_string + '\n\n' }}"
        "{%- if tools is not none %}{{- tools | tojson }}{%- endif %}{{- '<|eot_id|>' }}\n"
        "{%- for m in messages %}\n"
        "    {%- if m.tool_calls is defined %}\n"
        "        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n"
        "        {{- m.content if m.content is defined else '' }}\n"
        "        {{- m.tool_calls | tojson + '<|eom_id|>' }}\n"
        "    {%- else %}\n"
        "        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}\n"
        "        {{- m.content | trim + '<|eot_id|>' }}\n"
        "    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n"
    ),
    # Llama 2 and Mistral: marks are plain text, turns must alternate, a space before the end
    "alternates": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Gemma: no system turn, the assistant is called model
    "no-system": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    # Qwen 3: thoughts of the last answer are moved into a block of their own, which is opened for
    # answers without any; `enable_thinking=false` puts an empty one into the prompt
    "thinks": (
        "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}\n"
        "{%- if tools %}{{- '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{%- endif %}"
        "{%- for m in messages %}\n"
        "{%- set content = m.content if m.content is string else '' %}\n"
        "{%- if m.role == 'assistant' %}\n"
        "{%- set thoughts = '' %}\n"
        "{%- if m.reasoning_content is string %}{%- set thoughts = m.reasoning_content %}\n"
        "{%- elif '</think>' in content %}\n"
        "{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}\n"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}\n"
        "{{- '<|im_start|>assistant\n' }}\n"
        "{%- if loop.index0 > ns.last %}"
        "{{- '<think>\n' + thoughts + '\n</think>\n\n' }}{%- endif %}\n"
        "{{- content }}\n"
        "{%- for call in m.tool_calls or [] %}{{- '\n' + call.function | tojson }}{%- endfor %}\n"
        "{{- '<|im_end|>\n' }}\n"
        "{%- else %}{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}\n"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}\n"
    ),
    # the generation prompt itself opens the block
    "opens-think": (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<|im_start|>assistant\n<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}"
        "{{ m.content + '<|im_end|>\n' }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    ),
    # Zephyr: tokens between turns as plain text, the end token written as a literal; the header's
    # newline belongs to the answer
    "literal-end": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>' + '\n' }}{% if "
        "loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
    ),
    # no token ends the turn, only text
    "text-end": (
        "{{ bos_token }}{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + ' END\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}"
    ),
    # nothing ends the turn
    "no-end": (
        "{{ bos_token }}{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
    ),
    # Phi 3: another token behind the end of the turn, unless a turn is asked for
    "two-ends": (
        "{% for m in messages %}"
        "{{ '<start_of_turn>' + m.role + '\n' + m.content + '<|eot_id|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    # contents are lists of parts
    "parts": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}"
        "{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
END = {
    "chatml": "<|im_end|>",
    "strips": "<|im_end|>",
    "date": "<|eot_id|>",
    "alternates": "</s>",
    "no-system": "<end_of_turn>",
    "thinks": "<|im_end|>",
    "opens-think": "<|im_end|>",
    "literal-end": "</s>",
    "two-ends": "<|eot_id|>",
    "parts": "<|im_end|>",
}
