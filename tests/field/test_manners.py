"""What a command prints, and how soon it begins."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch
from click.testing import CliRunner
from transformers import MambaConfig, MambaForCausalLM

from tests.conftest import make_model, make_tokenizer
from tests.field.test_models import SIZES, refused, run, saved
from twcli.cli import main as command_line
from twcli.errors import UserError
from twcli.models import loading
from twcli.models.adapters import add_lora


def modules_after(code):
    """What is imported after `code`, in a fresh interpreter."""
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(found.stdout.split())


def test_help_and_a_cache_are_shown_without_torch():
    """Its import takes longer than all else that these do."""
    heavy = {"torch", "transformers", "scipy", "sklearn", "accelerate"}
    assert not heavy & modules_after("import twcli, twcli.cli.main")
    inspected = modules_after("import twcli.commands.inspection, twcli.evaluation.report")
    assert not heavy & inspected


def test_a_cache_is_inspected_without_torch(tmp_path, data_file):
    cache = tmp_path / "b.h5"
    source = saved(make_model(), tmp_path / "m")
    run("precompute", "--model", source, "--data", data_file, "--device", "cpu", "--out", cache)
    code = (
        "from click.testing import CliRunner\n"
        "from twcli.cli.main import main\n"
        f"result = CliRunner().invoke(main, ['inspect', '--verify', {str(cache)!r}])\n"
        "assert result.exit_code == 0, result.output"
    )
    assert "torch" not in modules_after(code)


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_silences_the_warnings_of_libraries(quiet, tmp_path, data_file, monkeypatch, recwarn):
    def load_model(*_, **__):
        warnings.warn("of peft", UserWarning, stacklevel=2)
        logging.getLogger("accelerate").warning("of accelerate")
        raise UserError("m: the end")

    monkeypatch.setattr(loading, "load_model", load_model)
    source = saved(make_model(), tmp_path / "m")
    call = ["--model", source, "--data", data_file, "--device", "cpu", "--out", tmp_path / "b.h5"]
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("accelerate").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            result = run("precompute", *call, *["--quiet"] * quiet, ok=False)
    finally:
        logging.getLogger("accelerate").removeHandler(handler)
    *before, last = result.output.splitlines()
    assert last == "twcli: m: the end" and result.exit_code == 2 and bool(before) != quiet
    assert bool(seen) != quiet and ("of peft" in [str(w.message) for w in recwarn.list]) != quiet
    assert logging.root.manager.disable == logging.NOTSET  # as it was before


def test_a_tokenizer_without_an_end_says_what_to_do(tmp_path, data_file):
    tokenizer = make_tokenizer()
    source = saved(make_model(), tmp_path / "m", tokenizer)
    path = tmp_path / "m/tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    call = ["--model", source, "--data", data_file, "--out", tmp_path / "b.h5"]
    line = refused("precompute", *call)
    assert 'no eos_token; set "eos_token" in its tokenizer_config.json' in line


def test_lora_that_peft_refuses_ends_in_one_whole_line():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    sizes = {k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
    model = MambaForCausalLM(MambaConfig(**sizes, state_size=4)).eval()
    settings = {"rank": 2, "alpha": 4, "seed": 0}
    with pytest.raises(UserError) as caught:
        add_lora(model, [1, 2], targets="all-linear", **settings)
    line = str(caught.value)
    assert "\n" not in line and "mamba" in line
    assert line.endswith("name the layers: --lora-targets dt_proj,in_proj,x_proj")
    fresh = MambaForCausalLM(MambaConfig(**sizes, state_size=4)).eval()
    add_lora(fresh, [1, 2], targets=line.rsplit(" ", 1)[1], **settings)  # what the line says works


def test_help_says_the_least_value_of_an_option():
    text = CliRunner().invoke(command_line.main, ["eval", "--help-all"]).output
    text = " ".join(text.split())
    assert "[at least 10]" in text[text.index("--bootstrap") :][:200]
