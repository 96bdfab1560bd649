import numpy as np
import pytest
from conftest import encode, make_tokenizer

from twcli.dataset import Example
from twcli.errors import UserError
from twcli.template import Template

# Vocabulary of conftest: <pad>=0 <bos>=1 <eos>=2 <unk>=3 <x>=4 </x>=5 <y>=6 </y>=7 <z>=8 </z>=9 w0=10 w1=11 ...


def test_z_free_sequence_by_hand(template):
    encoded = encode(template, [{"x": "w0 w1", "y": "w2"}, {"x": "w3", "y": "w4 w5 w6"}])
    assert encoded.ids.tolist() == [1, 4, 10, 11, 5, 6, 12, 7, 2, 1, 4, 13, 5, 6, 14, 15, 16, 7, 2]
    assert encoded.offsets.tolist() == [0, 9, 19]
    assert encoded.prompt_lengths.tolist() == [5, 4]
    assert encoded.target_lengths.tolist() == [2, 4]
    assert encoded.target_offsets.tolist() == [0, 2, 6]


def test_prompt_with_latent_by_hand(template):
    template.add_latents(2)
    z0, z1 = template.latent_ids(2)
    assert (z0, z1) == ([30], [31])
    assert template.prompt("w0", z1) == [1, 4, 10, 5, 8, 31, 9, 6]
    assert template.prompt("w0") == [1, 4, 10, 5, 6]


def test_a_latent_of_two_tokens_by_hand():
    template = Template(make_tokenizer(), "tiny", latent_tokens=2)
    template.add_latents(2)
    assert template.latent_ids(2) == [[30, 31], [32, 33]]
    assert template.tokenizer.convert_ids_to_tokens([30, 31, 32, 33]) == ["<z0.0>", "<z0.1>", "<z1.0>", "<z1.1>"]
    assert template.prompt("w0", [32, 33]) == [1, 4, 10, 5, 8, 32, 33, 9, 6]
    with pytest.raises(UserError, match=r"data.jsonl:1: 12 tokens .* more than the limit of 11"):
        encode(template, [{"x": "w0", "y": "w1"}], max_length=11)


def test_tags_inside_text_never_open_a_section(template):
    with pytest.raises(UserError, match=r"data.jsonl:2: field 'y' contains </y>"):
        encode(template, [{"x": "w0", "y": "w1"}, {"x": "w0", "y": "w2 </y> w3"}])


def test_unknown_words_are_counted(template):
    assert encode(template, [{"x": "w0 never", "y": "w1"}, {"x": "w0", "y": "w1"}]).unknown_rows == 1


def test_row_hash_depends_on_x_and_y_and_their_border(template):
    rows = [("w0", "w1"), ("w0 w1", "w2"), ("w0", "w1 w2"), ("w1", "w0"), ("w0", "w1")]
    hashes = encode(template, [{"x": x, "y": y} for x, y in rows]).row_hash
    assert len({h.tobytes() for h in hashes}) == 4
    assert np.array_equal(hashes[0], hashes[4])


def test_prompt_index_groups_equal_prompts(template):
    encoded = encode(template, [{"x": x, "y": "w1"} for x in ("w0", "w5", "w0", "w5 w5", "w5")])
    assert encoded.prompt_index.tolist() == [0, 1, 0, 2, 1]


def test_limit_counts_the_latent_section(template):
    record = [{"x": "w0", "y": "w1"}]  # 8 tokens, 11 with the latent section
    encode(template, record, max_length=11)
    with pytest.raises(UserError, match=r"data.jsonl:1: 11 tokens .* more than the limit of 10"):
        encode(template, record, max_length=10)


def test_missing_tags_are_named():
    tokenizer = make_tokenizer()
    bare = type(tokenizer)(tokenizer_object=_without(tokenizer, "</y>"), bos_token="<bos>", eos_token="<eos>")
    with pytest.raises(UserError, match="has no </y>"):
        Template(bare, "DIR")


def _without(tokenizer, tag):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(w for w in tokenizer.get_vocab() if w != tag)}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return result


def test_decode_cuts_at_the_closing_tag(template):
    assert template.decode([10, 11, 7, 12, 2]) == "w0 w1"
    assert template.decode([10, 2, 11]) == "w0"


def test_encode_is_the_same_in_one_block_and_in_many(template, monkeypatch):
    examples = [Example(f"w{i % 7}", f"w{i % 5} w{i % 3}") for i in range(20)]
    whole = template.encode(examples, max_length=64, source="f")
    monkeypatch.setattr("twcli.template.ENCODE_BLOCK", 3)
    parts = template.encode(examples, max_length=64, source="f")
    assert whole.ids.tolist() == parts.ids.tolist() and whole.data_hash() == parts.data_hash()
