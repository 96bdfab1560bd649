"""`twcli export`: a finished run becomes a folder that runs without this package.

The folder is written beside `--out`, loaded again by the library that will read it, and must give
the run's own prompts and logits; only then it gets its name. Shapes: K latents, T tokens, V words.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from twcli.commands.export_config import ExportConfig
from twcli.commands.export_forms import FORMS, UNMERGED_TOLERANCE, Form
from twcli.config.phases import CHECK, WRITE, Phases
from twcli.config.train import TrainConfig
from twcli.data import latent_chat
from twcli.data.dataset import stream_examples
from twcli.data.encoder import ExampleEncoder
from twcli.data.names import read_latent_names
from twcli.data.vocabulary import SECTION_TAGS, TAGS
from twcli.errors import UserError, WorkFailed, first_line
from twcli.models import loading, runtime
from twcli.models.building import load_run
from twcli.models.card import export_card
from twcli.models.runtime import Say
from twcli.storage.durable import replacing, sync_folder
from twcli.storage.run_folder import RunFolder

NOTE = "export.json"  # what the folder was made of, so that the same command finds it done
CHECKED_LATENTS = 16
CHECKED_RECORDS = 64
# Texts on which chat templates and tokenizers differ from each other.
PROBES = (
    "What is 2 + 2?",
    " spaces around ",
    "Two\n\nlines\tand a tab\n",
    "\nfirst a newline",
    "naïve café, 你好, мир, 🙂",
    "def f(x):\n    return {x}",
    "{{ messages }} {% set z = 1 %}",
    "7",
)


@dataclass(frozen=True)
class Reference:
    """What the run itself gives, which the exported folder must give too.

    Attributes:
        prompts: x, latent and the prompt's ids.
        sequences: token ids of some prompts with a completion.
        logits: float32 (T, V) of each of the sequences.
    """

    prompts: list[tuple[str, int, list[int]]]
    sequences: list[list[int]]
    logits: list[torch.Tensor]


def export(config: ExportConfig, say: Say, phases: Phases | None = None) -> None:
    """Writes and checks the folder, and uploads it where that is asked for.

    Args:
        phases: as of `precompute`.

    Raises:
        UserError: the run, a name, the form or the place is wrong.
        WorkFailed: the exported model differs from the run, the disk is full or the upload failed;
            an export that was finished stays.
    """
    run = RunFolder(config.run)
    out = Path(config.out)
    _check_place(out)
    trained = run.read_config()
    form = FORMS[config.to](config, run, trained)
    form.check_run()
    names = config.names() or _stored_names(trained, say)
    note = _note(config, run, names)
    if out.exists() and not config.overwrite:
        if _read_note(out) != note:
            raise UserError(f"{out}: exists and holds something else; --overwrite replaces it")
        say(f"{out}: already exported; --overwrite makes it again")
    else:
        _export(config, form, names, note, say, phases or Phases())
    if config.push_to_hub is not None:
        _upload(out, config.push_to_hub, say)


def _export(
    config: ExportConfig,
    form: Form,
    names: Mapping[int, str],
    note: Mapping[str, Any],
    say: Say,
    phases: Phases,
) -> None:
    """Loads the run, and puts the finished folder at its place once it gives what the run gives."""
    run = form.run
    trained = form.trained
    out = Path(config.out)
    latent_model, encoder, _ = load_run(
        run, device=config.device, precision=config.dtype, attention="sdpa"
    )
    model = latent_model.backbone
    latents = trained.resolved_latents
    form.check_model(model, encoder)
    sections = latent_chat.sections(latents, trained.latent_tokens, names)
    if config.latent is not None:
        default = config.latent
    else:
        default = _most_frequent(run, latents)
    if default not in sections:
        raise UserError(f"--latent {default}: the run has {', '.join(sections)}")
    _make_special(encoder)
    reference = _reference(model, encoder, trained)
    encoder.tokenizer.chat_template = _chat_template(encoder, sections, default)
    model.generation_config = _generation_config(encoder)
    card = export_card(
        trained, runtime.versions(), config.to, form.usage(), names=names, default=default
    )
    phases.begin(WRITE, str(out))
    try:
        with replacing(out) as staged:
            form.write(staged, model, encoder)
            (staged / "README.md").write_text(card, encoding="utf-8")
            # the run's model is freed before the export's is loaded
            del latent_model, model
            gc.collect()
            phases.begin(CHECK, "with the prompts and logits of the run")
            difference = _verify(config, staged, form, encoder, reference)
            (staged / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
            _sync(staged)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or first_line(error)
        if reason.endswith(" written"):  # numpy's, of GGUF's tensors
            reason = f"the disk is full ({reason})"
        raise WorkFailed(f"{out}: cannot be written: {reason}; nothing was written") from error
    say(
        f"{out}: {config.to}, checked: prompts are those of training, logits differ by "
        f"{difference:.1e} at most"
    )


def _generation_config(encoder: ExampleEncoder) -> GenerationConfig:
    """What servers take where a call leaves it open: the model's own distribution."""
    return GenerationConfig(
        bos_token_id=encoder.bos,
        eos_token_id=encoder.ends,
        pad_token_id=encoder.pad,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )


def _check_place(out: Path) -> None:
    """Raises UserError where `out` cannot be written, or is a folder that is no export."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out names a folder")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir() and not _read_note(out) and any(out.iterdir()):
        raise UserError(f"{out}: holds files that are no export; give another --out")
    try:
        with tempfile.TemporaryFile(dir=out.absolute().parent):
            pass
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


def _note(config: ExportConfig, run: RunFolder, names: Mapping[int, str]) -> dict[str, Any]:
    """What the folder is made of: equal notes mean equal exports."""
    try:
        made_of = hashlib.sha256(run.checksums_file.read_bytes()).hexdigest()
    except OSError:  # an unfinished run; loading it says so
        made_of = ""
    return {
        "made_by": "twcli export",
        "to": config.to,
        "run": made_of,
        "precision": config.dtype,
        "names": {str(k): name for k, name in sorted(names.items())},
        "latent": config.latent,
    }


def _read_note(out: Path) -> dict[str, Any]:
    """The note of a folder, empty where it is no export."""
    try:
        found = json.loads((out / NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _stored_names(trained: TrainConfig, say: Say) -> dict[int, str]:
    """Names in the file that the run was trained with, where it is still there and holds any."""
    if trained.names is None or not Path(trained.names).is_file():
        return {}
    names = read_latent_names(trained.names)
    if names:
        say("names: " + ", ".join(f"{k} {name}" for k, name in sorted(names.items())))
    return names


def _most_frequent(run: RunFolder, latents: int) -> str:
    """The latent with the largest share of the records that the run was trained with."""
    naming = run.read_naming()
    shares = naming.get("proportions")
    if not isinstance(shares, list) or len(shares) > latents or not shares:
        return "0"
    largest = max(shares)
    latent = shares.index(largest)
    return str(latent)


def _make_special(encoder: ExampleEncoder) -> None:
    """Tags that were plain words of the vocabulary become tokens that are found without spaces
    around them, as the chat template writes them.
    """
    tokenizer = encoder.tokenizer
    tags = TAGS if encoder.template.name == "tags" else SECTION_TAGS
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    missing = [tag for tag in tags if tag not in special]
    if missing:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": missing}, replace_extra_special_tokens=False
        )


def _probes(encoder: ExampleEncoder, trained: TrainConfig) -> list[str]:
    """Prompts that the template takes: the first of the training data if they are still there, a
    line of the vocabulary's words, and `PROBES`.
    """
    texts: list[str] = []
    if Path(trained.data).is_file():
        try:
            rows = stream_examples(
                trained.data, x_field=trained.x_field, y_field=None, empty=trained.empty
            )
            texts += dict.fromkeys(row.x for row in islice(rows, CHECKED_RECORDS))
        except UserError:  # changed since; the others will do
            pass
    tokenizer = encoder.tokenizer
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // CHECKED_RECORDS))
    special = set(tokenizer.added_tokens_decoder)
    texts.append(" ".join(tokenizer.decode([id]).strip() for id in ids if id not in special))
    good = []
    for x in [*texts, *PROBES]:
        try:
            encoder.prompt(x)
        except UserError:  # no token of the vocabulary, or one that is a tag
            continue
        good.append(x)
    if not good:
        raise UserError(f"{encoder.source}: its tokenizer takes none of the texts to check with")
    return good


def _chat_template(encoder: ExampleEncoder, found: Mapping[str, str], default: str) -> str:
    """The run's chat template with latents, or one that builds the prompts of the run's
    template.
    """
    template = encoder.template
    if template.chat is not None:
        return latent_chat.with_latents(template.chat.text, found, default)
    return latent_chat.one_turn(template.text, found, default)


def _misread(tokenizer: Any, prompts: Sequence[tuple[str, int, list[int]]]) -> list[str]:
    """The x whose prompts by the chat template are not those of training."""
    wrong = []
    for x, latent, ids in prompts:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": x}],
            latent=latent,
            add_generation_prompt=True,
            return_dict=False,
        )
        if rendered != ids:
            wrong.append(x)
    return wrong


@torch.no_grad()
def _logits(model: PreTrainedModel, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """(T, V) float32 next-token logits of each sequence of T ids, on the CPU."""
    found = []
    for ids in sequences:
        ids_1T = torch.tensor([ids], device=model.device)
        output = model(input_ids=ids_1T, use_cache=False)
        logits = output.logits[0].float()
        found.append(logits.cpu())
    return found


def _reference(model: PreTrainedModel, encoder: ExampleEncoder, trained: TrainConfig) -> Reference:
    """Prompts and logits of the run, to hold the export against: the first text under a few
    latents, each other text under one.
    """
    latents = trained.resolved_latents
    latent_ids = encoder.latent_ids(latents)
    count = min(latents, CHECKED_LATENTS)
    checked = [k * latents // count for k in range(count)]
    prompts: list[tuple[str, int, list[int]]] = []
    for number, x in enumerate(_probes(encoder, trained)):
        for k in checked if number == 0 else [number % latents]:
            prompts.append((x, k, encoder.prompt(x, latent_ids[k])))
    answer = encoder.prompt(prompts[0][0])[1:4]  # any ids will do as a completion
    context = loading.context_length(model, None)
    sequences = [(ids + answer)[:context] for _, _, ids in prompts[:count]]
    return Reference(prompts, sequences, _logits(model, sequences))


def _verify(
    config: ExportConfig, folder: Path, form: Form, encoder: ExampleEncoder, reference: Reference
) -> float:
    """Largest difference of a logit between the folder's model and the run's: as it was trained,
    where the form has that, else as it is in `RUN/model`; both are checked.

    Raises:
        WorkFailed: it is larger than rounding explains, the folder cannot be loaded, or its chat
            template gives other prompts.
    """
    device = runtime.pick_device(config.device)
    trained = _logits_as_trained(form, encoder, reference, device)
    try:
        model, tokenizer = form.load(folder)
        model = model.to(device)
        as_loaded = _logits(model, reference.sequences) if trained is not None else None
        logits = _logits(form.as_run(model), reference.sequences)
    except (UserError, OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise WorkFailed(
            f"{config.out}: the export cannot be loaded: {first_line(error)}"
        ) from error
    _check_prompts(config, tokenizer, reference)
    merged = _largest_difference(config, logits, reference.logits, form.tolerance())
    if trained is None or as_loaded is None:
        return merged
    return _largest_difference(config, as_loaded, trained, UNMERGED_TOLERANCE, relative=False)


def _logits_as_trained(
    form: Form, encoder: ExampleEncoder, reference: Reference, device: torch.device
) -> list[torch.Tensor] | None:
    """As `_logits`, of what the run trained; None where that is `RUN/model`."""
    model = form.as_trained(encoder)
    if model is None:
        return None
    logits = _logits(model.to(device), reference.sequences)
    del model
    gc.collect()  # before the export's model is loaded
    return logits


def _check_prompts(config: ExportConfig, tokenizer: Any, reference: Reference) -> None:
    """Compares the prompts that the exported chat template gives with those of training, token by
    token.

    Raises:
        WorkFailed: a prompt has other tokens; the message shows the first.
    """
    wrong = _misread(tokenizer, reference.prompts)
    if wrong:
        number = f"{len(wrong)} of {len(reference.prompts)}"
        first = wrong[0][:60]
        raise WorkFailed(
            f"{config.out}: the chat template gives {number} prompts other tokens than training "
            f"did, the first {first!r}; nothing was written"
        )


def _largest_difference(
    config: ExportConfig,
    logits: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    tolerance: float,
    *,
    relative: bool = True,
) -> float:
    """Of logits (T, V) of each sequence to those wanted.

    Args:
        tolerance: the largest difference that rounding explains; where it is relative, in parts of
            the largest logit, or of 1.

    Raises:
        WorkFailed: it is larger than rounding explains, or V is another.
    """
    difference = 0.0
    for mine, theirs in zip(logits, wanted, strict=True):
        if mine.shape != theirs.shape:
            raise WorkFailed(f"{config.out}: the export has another vocabulary than the run")
        largest = float((mine - theirs).abs().max())
        allowed = tolerance * max(1.0, float(theirs.abs().max())) if relative else tolerance
        if not largest <= allowed:  # false for NaN
            raise WorkFailed(
                f"{config.out}: the exported model's logits differ by {largest:.1e} from the "
                f"run's, more than the {allowed:.0e} that rounding explains; nothing was written"
            )
        difference = max(difference, largest)
    return difference


def _sync(folder: Path) -> None:
    """Waits until all files of the folder are on the disk, those that other libraries wrote among
    them.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _upload(out: Path, repository: str, say: Say) -> None:
    """Uploads the folder; a repository that is made for it is private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.errors import HTTPError as AnyHTTPError  # type: ignore[attr-defined]

    again = f"{out} is finished; the same command uploads it again"
    try:
        api = HfApi()
        made = not api.repo_exists(repository)
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=out, commit_message="Model exported by twcli"
        )
    except (HfHubHTTPError, AnyHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise WorkFailed(f"--push-to-hub {repository}: {first_line(error)}; {again}") from error
    line = f"uploaded to {repository}"
    if made:
        line += ", which is private"
    say(line)
