"""The forms in which `twcli export` writes a run: what each can write, writes and loads again.

A new form is a subclass of `Form` and an entry of `FORMS`, which the option `--to` reads: so what
takes long to import is imported where it is needed.
"""

from __future__ import annotations

import json
import shutil
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from twcli.config.inputs import PRECISIONS
from twcli.errors import UserError
from twcli.models.usage import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twcli.config.train import TrainConfig
    from twcli.data.encoder import ExampleEncoder
    from twcli.storage.run_folder import RunFolder

# Largest difference of a logit, in parts of the largest logit: float32 rounding of other kernels or
# of a merged adapter stays below it (6e-6 on SmolLM2-135M), a wrong weight is far above.
TOLERANCE = 2e-5
# Largest difference of a logit where both compute the same: merging rounds, this does not.
UNMERGED_TOLERANCE = 1e-4
# Where two machines round weights to half precision, a few of them to another neighbour.
HALF_TOLERANCE = 2e-3


class Options(Protocol):
    """What a form reads of the options of `twcli export`."""

    @property
    def run(self) -> str:
        """The run's folder."""

    @property
    def out(self) -> str:
        """The folder to write."""

    @property
    def dtype(self) -> str:
        """The precision of the weights that are written."""


class Form(ABC):
    """One form of an exported folder.

    Attributes:
        help: what it is and for what, as the help of `--to` says it.
        dtypes: in which its weights can be written.
    """

    help: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = PRECISIONS

    def __init__(self, config: Options, run: RunFolder, trained: TrainConfig) -> None:
        self.config = config
        self.run = run
        self.trained = trained

    def check_run(self) -> None:
        """Raises UserError where such a run has no such form; before anything is loaded."""
        return

    def check_model(self, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """Raises UserError where this model or tokenizer cannot be written exactly."""
        return

    @abstractmethod
    def usage(self) -> Usage:
        """What the folder's card says of using it."""

    @abstractmethod
    def write(self, folder: Path, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """Writes model, tokenizer and generation settings into an empty folder."""

    @abstractmethod
    def load(self, folder: Path) -> tuple[Any, Any]:
        """The model and the tokenizer, by the library that will read the folder."""

    def as_trained(self, encoder: ExampleEncoder) -> Any | None:
        """What the run trained, where that is not `RUN/model`, in which it is merged: the loaded
        model must compute the same as well.
        """
        return None

    def as_run(self, model: Any) -> Any:
        """A loaded model with its weights as `RUN/model` has them, to compare the two; may change
        the one that it is given.
        """
        return model

    def tolerance(self) -> float:
        """Largest difference of a logit that rounding explains, in parts of the largest logit."""
        return TOLERANCE


class Merged(Form):
    """The merged model, as transformers and most servers take it."""

    help = "a merged folder for transformers and most servers"

    def usage(self) -> Usage:
        """As `Form.usage`."""
        return Usage(
            library="transformers",
            load="""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
            serve="For example `vllm serve FOLDER`, or `transformers serve FOLDER`.",
        )

    def write(self, folder: Path, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """As `Form.write`."""
        model.save_pretrained(folder, safe_serialization=True)
        encoder.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> tuple[Any, Any]:
        """As `Form.load`."""
        from twcli.models import loading

        model = loading.load_model(str(folder), precision=self.config.dtype)
        return model, _tokenizer_in(folder)


class Adapter(Form):
    """LoRA and the new tokens' rows, for peft on the base model."""

    help = "for peft on the base model"
    dtypes = ("fp32",)

    def usage(self) -> Usage:
        """As `Form.usage`. The base is loaded in float32, in which the adapter was trained;
        transformers would take the precision of its files.
        """
        from twcli.models.card import public_place

        base = public_place(self.trained.model)
        in_gguf = base.endswith(".gguf")
        if in_gguf:
            place = f'"folder of the file", gguf_file="{base}"'
        else:
            place = f'"{base}"'
        in_one_line = """

# or in one line, which does the same:
# model = AutoPeftModelForCausalLM.from_pretrained(FOLDER, dtype="float32")"""
        return Usage(
            library="peft",
            load=f"""from peft import {"" if in_gguf else "AutoPeftModelForCausalLM, "}PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
base = AutoModelForCausalLM.from_pretrained({place}, dtype="float32")
if len(tokenizer) > base.get_input_embeddings().num_embeddings:  # rows for the new tokens
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
model = PeftModel.from_pretrained(base, FOLDER){"" if in_gguf else in_one_line}""",
            serve="""Few servers load an adapter that adds tokens; serve the merged folder of
`twcli export --to hf` instead.""",
        )

    def check_run(self) -> None:
        """As `Form.check_run`: the run must have trained an adapter, on a model that is none."""
        from twcli.models.merging import adapter_in

        if self.trained.adapt != "lora":
            raise UserError(
                f"{self.config.run}: was trained with --adapt {self.trained.adapt}, so there is "
                "no adapter; give --to hf"
            )
        if adapter_in(self.trained.model) is not None:
            raise UserError(
                f"{self.config.run}: its model {self.trained.model} is itself an adapter, and peft "
                "would put this one on the model below it; give --to hf"
            )

    def write(self, folder: Path, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """As `Form.write`."""
        for file in self.run.adapter.iterdir():
            shutil.copy(file, folder / file.name)
        settings_file = folder / "adapter_config.json"
        settings = json.loads(settings_file.read_bytes())
        settings["base_model_name_or_path"] = self.trained.model
        settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True))
        assert model.generation_config is not None
        model.generation_config.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> tuple[Any, Any]:
        """As `Form.load`: the base model with the folder's adapter, by peft alone, as a user of the
        folder would load it. Rows of new tokens are added first.
        """
        from peft import PeftModel

        from twcli.models import loading

        tokenizer = _tokenizer_in(folder)
        base = loading.load_model(self.trained.model, attention="sdpa")
        rows = base.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name
            model = PeftModel.from_pretrained(base, str(folder))
        return model.eval(), tokenizer

    def as_trained(self, encoder: ExampleEncoder) -> Any:
        """As `Form.as_trained`: the model below with the run's own adapter."""
        from twcli.models.building import load_as_trained

        return load_as_trained(self.run, self.trained, encoder)

    def as_run(self, model: Any) -> Any:
        """As `Form.as_run`: a run of a model in half precision has merged weights that are rounded
        to it, which the adapter in float32 has not.
        """
        import torch

        stored = self._stored_dtype()
        if stored == torch.float32:
            return model
        return model.merge_and_unload().to(stored).to(torch.float32)

    def tolerance(self) -> float:
        """As `Form.tolerance`."""
        import torch

        if self._stored_dtype() == torch.float32:
            return TOLERANCE
        return HALF_TOLERANCE

    def _stored_dtype(self) -> Any:
        """The torch.dtype of the run's merged weights."""
        from twcli.models import loading

        return loading.stored_dtype(str(self.run.model))


class Gguf(Form):
    """One file for llama.cpp, for models of the Llama family."""

    help = "for llama.cpp"

    def usage(self) -> Usage:
        """As `Form.usage`."""
        return Usage(
            library="gguf",
            load="""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file="model.gguf")
tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file="model.gguf")""",
            serve="For example `llama-server -m model.gguf --jinja`.",
        )

    def check_model(self, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """As `Form.check_model`."""
        from twcli.models import gguf_file

        gguf_file.check(model.config, encoder, self.config.run)

    def write(self, folder: Path, model: PreTrainedModel, encoder: ExampleEncoder) -> None:
        """As `Form.write`."""
        from twcli.models import gguf_file

        name = Path(self.config.out).absolute().name
        splitting = gguf_file.check(model.config, encoder, self.config.run)
        gguf_file.write(folder / gguf_file.FILE, model, encoder, name, splitting)

    def load(self, folder: Path) -> tuple[Any, Any]:
        """As `Form.load`: both from the one file, which holds the vocabulary as well."""
        from twcli.models import gguf_file, loading

        file = folder / gguf_file.FILE
        model = loading.load_model(str(file), precision=self.config.dtype)
        tokenizer = _tokenizer_in(folder, gguf_file=gguf_file.FILE)
        return model, tokenizer


def _tokenizer_in(folder: Path, **settings: Any) -> Any:
    """The tokenizer of a folder; `settings` as transformers takes them."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)


FORMS: dict[str, type[Form]] = {"hf": Merged, "adapter": Adapter, "gguf": Gguf}
