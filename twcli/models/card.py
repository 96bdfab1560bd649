"""Model cards: what a model is and how to prompt it, for somebody who has only its folder. One is
for a run's `model/`, one for what `twcli export` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from twcli.config.train import TrainConfig
from twcli.data.encoder import ExampleEncoder
from twcli.data.latent_chat import latent_tokens
from twcli.models.usage import Usage


def model_card(
    config: TrainConfig, encoder: ExampleEncoder, versions: dict[str, str], steps: int
) -> str:
    """Markdown. `encoder` already has the latents; `steps` are the training steps."""
    latents = config.resolved_latents
    names = ["".join(latent_tokens(k, config.latent_tokens)) for k in range(latents)]
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""{_metadata("transformers")}

# A model with {latents} latent strategies

Made from `{public_place(config.model)}` by `twcli train` ({made_by}).
The token between `<z>` and `</z>` selects the strategy. It is an ordinary vocabulary token,
so the model runs with plain `transformers`.

{_how_to_prompt(encoder, names)}

The other latents are {", ".join(f"`{name}`" for name in names[1:])}. Generation ends with
{_ending(encoder)}.

Training used no labels, so what each latent means is not known from it.
`twcli eval` measures it, and its `report.html` shows the results.

| setting | value |
| --- | --- |
| data | `{public_place(config.data)}` |
| steps, seed | {steps}, {config.seed} |
| weighting, beta | {config.weighting}, {config.beta} |
| adapt | {config.adapt} |
"""


def _how_to_prompt(encoder: ExampleEncoder, names: list[str]) -> str:
    """How a prompt is made without this package, as Markdown."""
    if encoder.template.chat is not None:
        return """The prompt for latent 0, by the chat template of this folder's `tokenizer`:

```python
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}],
    add_generation_prompt=True,
    latent=0,
    return_tensors="pt",
    return_dict=True,
)
model.generate(**prompt)
```"""
    first = encoder.template.text.replace("{z}", f"<z>{names[0]}</z>").split("{y}")[0]
    return f"""The prompt for latent 0, with the question in place of `{{x}}`; tokenise with
`add_special_tokens=False`:

```text
{first}
```"""


def _ending(encoder: ExampleEncoder) -> str:
    """By which token or text a completion ends, as Markdown."""
    if encoder.end_text:
        return (
            f"the text `{encoder.end_text}`: give `generate` "
            f"`stop_strings=[{encoder.end_text!r}], tokenizer=tokenizer`"
        )
    return f"`{encoder.tokenizer.convert_ids_to_tokens(encoder.y_close)}`"


def _metadata(library: str, base_model: str | None = None) -> str:
    """The card's YAML head, in the form that the hub reads."""
    data = ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=["twcli", "discrete-latent"],
        base_model=base_model,
    )
    return f"---\n{data.to_yaml()}\n---"


def public_place(place: str) -> str:
    """A hub name unchanged, of a local path only the last component: cards and pages are shared."""
    if place.startswith(("/", ".", "~")) or place.count("/") > 1:
        return place.rstrip("/").rsplit("/", 1)[-1]
    return place


def export_card(
    config: TrainConfig,
    versions: Mapping[str, str],
    form: str,
    usage: Usage,
    *,
    names: Mapping[int, str],
    default: str,
) -> str:
    """Markdown for an exported folder.

    Args:
        config: the settings of the run.
        form: as `--to` calls it.
        usage: how a folder of this form is loaded and served.
        names: names of some of the latents.
        default: the latent that is used where a call names none.
    """
    latents = config.resolved_latents
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    on_hub = not config.model.endswith(".gguf") and not Path(config.model).exists()
    rows = "\n".join(f"| {k} | {names.get(k, '')} |" for k in range(latents))
    base = public_place(config.model)
    example = names.get(latents - 1, str(latents - 1))
    named = "; names were given by hand" if names else ", and none was given a name"
    if example in names.values():
        value = f'"{example}"'
    else:
        value = example
    return f"""{_metadata(usage.library, base_model=config.model if on_hub else None)}

# A model with {latents} latent strategies

Made from `{base}` by `twcli train` and `twcli export --to {form}` ({made_by}).
A latent selects the strategy by which the model answers:

| latent | name |
| --- | --- |
{rows}

Where a call names none, it is latent {default}.

{_with_transformers(usage.load, value)}

{_over_a_server(usage.serve, example, value)}

`latent="router"` ends the prompt at `<z>`: the model's next token, among the latents' tokens alone,
is the latent that its router draws for the prompt. Call again with that latent.

Training used no labels, so what each latent means is not known from it{named}.
"""


def _with_transformers(load: str, value: str) -> str:
    """How a folder is loaded and prompted in Python, as Markdown.

    Args:
        load: lines of Python that load it.
        value: a latent as Python writes it.
    """
    return f"""## With transformers

```python
{load}
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(
    messages, latent={value}, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _over_a_server(serve: str, latent: str, value: str) -> str:
    """How a served folder is asked, as Markdown.

    Args:
        serve: a sentence on servers.
        latent: one by its name or number, and `value` as Python writes it.
    """
    return f"""## Over an OpenAI-compatible server

{serve}

```python
answer = client.chat.completions.create(
    model=MODEL, messages=messages, extra_body={{"chat_template_kwargs": {{"latent": {value}}}}}
)
```

Where a server does not pass `chat_template_kwargs` on, the first line of a system message names the
latent; the chat template reads that line and drops it:

```python
messages = [{{"role": "system", "content": "latent: {latent}"}}, *messages]
```"""
