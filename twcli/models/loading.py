"""Models and tokenizers from folders, GGUF files and the hub, checked before they are used."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from twcli.data.encoder import ExampleEncoder
from twcli.data.template import AUTO, read_template
from twcli.data.vocabulary import SECTION_TAGS, add_tags, default_template
from twcli.errors import UserError, first_line
from twcli.models import checkpoint_files, gguf_reading
from twcli.models.checks import check_model
from twcli.models.merging import adapter_in, merge_adapter, without_adapter
from twcli.models.new_rows import grow_embeddings
from twcli.models.positions import forget_earlier_passes, stretched_context
from twcli.models.runtime import DTYPES, Say, silent
from twcli.storage import hub

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}  # names of safetensors
DEQUANTISED_AT_LOAD = ("fp8", "mxfp4")  # methods of transformers that take `dequantize`
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_encoder(
    source: str,
    latent_tokens: int = 1,
    template: str = "tags",
    chat_settings: Mapping[str, Any] | None = None,
) -> ExampleEncoder:
    """The tokenizer at `source` with its prompt template; missing tags are added.

    Args:
        latent_tokens: tokens P per latent.
        template: what `--template` takes; "auto" as `vocabulary.default_template` says.
        chat_settings: variables of the chat template.

    Raises:
        UserError: there is no tokenizer, or the template does not fit it.
    """
    place, settings = _tokenizer_place(source)
    if Path(place).is_dir() and not settings:
        checkpoint_files.check_settings(Path(place))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError and others for the same mistake
        if Path(place).is_dir() and not settings and not any(Path(place).glob("*token*")):
            raise UserError(
                f"{source}: holds no tokenizer (tokenizer.json); copy that of the model there"
            ) from error
        if not settings:
            _check_config(place, error)
        lacks = "sentencepiece" in str(error) and importlib.util.find_spec("sentencepiece") is None
        advice = "; its file needs: pip install 'twcli-cvae[sentencepiece]'" if lacks else ""
        raise UserError(f"{source}: no usable tokenizer: {first_line(error)}{advice}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"{source}: the tokenizer has no tokenizer.json; save it once as a fast tokenizer"
        )
    _check_one_reading(tokenizer, source)
    if template == AUTO:
        template = default_template(tokenizer)
    parsed = read_template(template, tokenizer, source, chat_settings)
    return ExampleEncoder(tokenizer, source, latent_tokens, parsed, add_tags(tokenizer, parsed))


def _check_one_reading(tokenizer: Any, source: str) -> None:
    """Sees to it that a text has the same ids at each reading, with the special tokens in it.

    BPE dropout, which draws other pieces each time (Provilkov et al. 2020), is of the training of
    a model: it is turned off, here and in what is saved.

    Raises:
        UserError: special tokens are split into pieces, so that no text becomes one.
    """
    pieces = tokenizer.backend_tokenizer.model
    if getattr(pieces, "dropout", None):
        pieces.dropout = None
    if getattr(tokenizer, "split_special_tokens", False):
        raise UserError(
            f"{source}: its tokenizer_config.json has split_special_tokens, under which no chat "
            "template works; set it to false"
        )


def load_model(
    source: str, *, precision: str = "fp32", attention: str = "sdpa", say: Say = silent
) -> PreTrainedModel:
    """A causal language model in eval mode, from safetensors or a GGUF file only; quantised weights
    are dequantised, an adapter is merged. `checks.check_model` has asked it.

    Args:
        say: takes one line for each thing that is not as the files or the options have it.

    Raises:
        UserError: there is no model, its weights are a pickle, it lacks the attention backend, or
            it fails `check_model`.
    """
    adapter = adapter_in(source)
    with gguf_reading.once():
        if adapter is None:
            model = _load_weights(source, precision, attention, say)
        else:
            with without_adapter(adapter) as base:
                model = _load_weights(base, precision, attention, say)
    if adapter is not None:
        model = merge_adapter(model, adapter).eval()
        say(
            f"{source}: holds an adapter, which is merged into its model, {adapter.base}"
            + ("; if it was merged before, remove adapter_config.json" * adapter.beside_its_model)
        )
    _ask_for_logits_alone(model)
    forget_earlier_passes(model)
    check_model(model, source)
    return model


def _ask_for_logits_alone(model: PreTrainedModel) -> None:
    """Undoes what some checkpoints ask of each pass in their settings: all states, attention
    weights, which sdpa has not and with which no model can be saved, or outputs as a tuple.
    """
    model.config.output_attentions = False
    model.config.output_hidden_states = False
    model.config.return_dict = True


def _load_weights(source: str, precision: str, attention: str, say: Say) -> PreTrainedModel:
    """The model at `source`, which has no adapter; raises as `load_model`."""
    place, settings = _placed(source)
    folder = Path(place)
    if folder.is_dir() and not settings and not any(folder.glob("*.safetensors")):
        found = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        raise UserError(
            f"{source}: holds no .safetensors weights"
            + (f" ({found[0]} is a pickle and is not loaded)" if found else "")
        )
    if folder.is_dir() and not settings:
        checkpoint_files.check_settings(folder)
        checkpoint_files.check_weights(folder)
    how: dict[str, Any] = dict(settings)
    try:
        if not settings:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
            how = {"use_safetensors": True, "config": _to_dequantise(config)}
        with redirect_stderr(io.StringIO()):  # the progress bar of GGUF cannot be turned off
            model, loading = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=DTYPES[precision],
                attn_implementation=attention,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to be named below
                **how,
            )
    except Exception as error:  # as above
        if "attention implementation" in str(error) and attention != "eager":
            say(f"{source}: the model has no {attention} attention; eager attention is taken")
            return _load_weights(source, precision, "eager", say)
        own_code = "; it needs code of its own, which is not run" * _has_own_code(folder)
        local = folder.is_dir() and not settings
        why = checkpoint_files.unknown_setting(folder, error) if local else None
        raise UserError(
            f"{source}: cannot be loaded as a causal language model: {why or first_line(error)}"
            f"{own_code}"
        ) from error
    if not settings:
        _check_complete(loading, source)
        _say_unread(loading, source, say)
    if settings or getattr(config, "quantization_config", None):
        _dequantise(model, DTYPES[precision], source, gguf=bool(settings))
    return model.eval()


def _has_own_code(folder: Path) -> bool:
    """Whether the config names Python files of the checkpoint, which are never run; False where it
    cannot be read.
    """
    with suppress(OSError, ValueError, AttributeError):
        text = (folder / "config.json").read_text("utf-8")
        config = json.loads(text)
        return "auto_map" in config
    return False


def _check_config(place: str, error: Exception) -> None:
    """Raises UserError where the tokenizer failed by the model's config, which it reads as well."""
    try:
        AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as again:  # of any kind, as the first one
        if str(again) == str(error):
            raise UserError(f"{Path(place) / 'config.json'}: {first_line(error)}") from error


def _say_unread(loading: Mapping[str, Any], source: str, say: Say) -> None:
    """Says which weights the model has no place for: transformers leaves them out.

    Args:
        loading: what `from_pretrained` says of it.
    """
    unread = sorted(loading.get("unexpected_keys") or ())
    if unread:
        more = f" and {len(unread) - 1:,} more" * (len(unread) > 1)
        say(
            f"{source}: by its config.json it has no place for the weights {unread[0]}{more}; they "
            "are left out"
        )


def _check_complete(loading: Mapping[str, Any], source: str) -> None:
    """Raises UserError if weights are missing, or are of other sizes than the config says: each
    loading would give them other random values.

    Args:
        loading: what `from_pretrained` says of it.
    """
    if loading.get("mismatched_keys"):
        name, stored, wanted = sorted(loading["mismatched_keys"])[0]
        raise UserError(
            f"{source}: the weights {name} are of size {tuple(stored)}, and by its config.json "
            f"they are of {tuple(wanted)}; they do not belong together: copy both again"
        )
    if missing := sorted(loading.get("missing_keys", ())):
        raise UserError(
            f"{source}: the weights lack {missing[0]}"
            + (f" and {len(missing) - 1:,} more" if len(missing) > 1 else "")
            + "; the checkpoint is incomplete or of another model: copy it again"
        )


def _to_dequantise(config: Any) -> Any:
    """The config with the request that quantised weights be dequantised, where the method has
    one: on some GPUs they would stay as they are.
    """
    quantised = getattr(config, "quantization_config", None)
    if isinstance(quantised, dict) and quantised.get("quant_method") in DEQUANTISED_AT_LOAD:
        config.quantization_config = {**quantised, "dequantize": True}
    return config


def _dequantise(model: PreTrainedModel, dtype: torch.dtype, source: str, *, gguf: bool) -> None:
    """Makes a model that was loaded from quantised weights one that can be trained and saved as any
    other: of one dtype, and without what its saving would do to become quantised again. Those of a
    GGUF file have been dequantised as they were read.

    Raises:
        UserError: transformers has no dequantisation for the method.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        method = getattr(quantizer.quantization_config, "quant_method", None)
        if getattr(model, "is_quantized", False) and not gguf:
            try:
                model.dequantize()
            except Exception as error:
                raise UserError(
                    f"{source}: its weights are quantised by {getattr(method, 'value', method)}, "
                    "which cannot be undone here; give the model as it was before"
                ) from error
        quantizer.remove_quantization_config(model)
    vars(model).pop("_weight_conversions", None)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def stored_dtype(source: str) -> torch.dtype:
    """The dtype of the weights at `source`: what a run that starts from them is saved in. Quantised
    weights have the dtype that they were quantised from; those of a GGUF file are float32 here.
    """
    adapter = adapter_in(source)
    place, settings = _placed(source if adapter is None else adapter.base)
    if settings:
        return torch.float32
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    found = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    if isinstance(found, torch.dtype):
        return found
    for path in sorted(Path(place).glob("*.safetensors"))[:1]:
        with safe_open(path, framework="pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        return next((HALVES[dtype] for dtype in HALVES if dtype in dtypes), torch.float32)
    return torch.float32


def load_frozen(
    source: str,
    *,
    precision: str = "fp32",
    attention: str = "sdpa",
    template: str = "tags",
    latent_tokens: int = 1,
    say: Say = silent,
    chat_settings: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ExampleEncoder]:
    """The model that defines b_t, and its template. Tags that the tokenizer lacked get embedding
    rows, except for those of the latent section; `say` as in `load_model`.

    Raises:
        UserError: as `load_encoder`, `load_model` and `fit_vocabulary`.
    """
    with gguf_reading.once():
        read = load_encoder(source, latent_tokens, template, chat_settings)
        model = load_model(source, precision=precision, attention=attention, say=say)
    read.token_rows.take_ends(model.generation_config)
    fit_vocabulary(model, read)
    return model, read


def context_length(model: PreTrainedModel, asked: int | None) -> int:
    """Longest sequence in tokens: the model's context, or `--max-length` if that is shorter.

    Sparse attention that chooses `index_topk` keys (DeepSeek-V3.2) chooses in transformers among
    later tokens as well: beyond that length a row's logits depend on what it is batched with. There
    it is taken for the context.

    Raises:
        UserError: `--max-length` exceeds the model's context.
    """
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None:
        limit = stretched_context(model, limit)
    if (chosen := getattr(text, "index_topk", None)) is not None:
        limit = min(chosen, limit or chosen)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"--max-length {asked}: the model's context holds {limit} tokens")
    return asked or limit or 2**20


def fit_vocabulary(
    model: PreTrainedModel, encoder: ExampleEncoder, *, section: bool = False
) -> None:
    """Adds embedding rows for the tags that were added to the tokenizer: the mean row of the tokens
    that spell the tag.

    Args:
        section: add the rows of `<z>` and `</z>`, else those of all other tags. The frozen model
            has no rows for `<z>` and `</z>`: every row enters the softmax, and the z-free sequence
            has neither tag.

    Raises:
        UserError: tokenizer and model do not fit together.
    """
    rows = model.get_input_embeddings().num_embeddings
    vocabulary = encoder.tokenizer.get_vocab()
    if not section:
        _check_ids(encoder, rows)
        encoder.token_rows.embedded = rows
    tags = [tag for tag in encoder.added if (tag in SECTION_TAGS) == section]
    needed = max((vocabulary[tag] + 1 for tag in tags), default=0)
    grow_embeddings(model, needed)
    with torch.no_grad():
        # In float64, so that the weights' hash does not depend on this machine's order of
        # summation.
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            for tag in tags:
                layer.weight[vocabulary[tag]] = (
                    layer.weight[encoder.spelling(tag)].double().mean(0).to(layer.weight.dtype)
                )


def _check_ids(encoder: ExampleEncoder, rows: int) -> None:
    """Raises UserError if plain text or the template may become an id for which the model has no
    embedding row. A special token that nothing becomes may lack one, as that for images of a
    model's text part.
    """
    tokenizer = encoder.tokenizer
    special = set(tokenizer.get_added_vocab())
    largest = max(
        (id for tag, id in tokenizer.get_vocab().items() if tag not in special), default=0
    )
    if largest >= rows:
        raise UserError(
            f"{encoder.source}: the tokenizer's largest id is {largest}, the model has {rows} "
            "embeddings; they do not belong together: take the tokenizer of this model"
        )
    added = {*encoder.added_ids, encoder.z_open, encoder.z_close}
    around = encoder.template.before_x + encoder.template.before_z + encoder.template.before_y
    for token in {*around, *encoder.template.after_y, encoder.eos, encoder.pad} - added:
        if token >= rows:
            raise UserError(
                f"{encoder.source}: the template needs {tokenizer.convert_ids_to_tokens(token)}, "
                f"id {token}, and the model has {rows} embeddings; they do not belong together: "
                "take the tokenizer of this model"
            )


def _tokenizer_place(source: str) -> tuple[str, dict[str, str]]:
    """As `_placed`; of an adapter without a tokenizer, where its model is."""
    adapter = adapter_in(source)
    if adapter is None or adapter.beside_its_model:
        return _placed(source)
    own = any((adapter.folder / name).is_file() for name in TOKENIZER_FILES)
    if own:
        return (str(adapter.folder), {})
    return _placed(adapter.base)


def _placed(source: str) -> tuple[str, dict[str, str]]:
    """The path for `from_pretrained` and its extra arguments; for a `.gguf` file, its folder and
    name. A hub name is looked up, not downloaded.

    Raises:
        UserError: no such folder, file or hub name, or `gguf` is missing.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{source}: no such file")
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{source}: GGUF files need: pip install 'twcli-cvae[gguf]'")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_file():
        raise UserError(f"{source}: is a file; give the model's folder, or a .gguf file")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{source}: holds no config.json; --model takes a Hugging Face folder, "
            "a .gguf file or a hub name"
        )
    hub.look_for_model(source)
    return source, {}
