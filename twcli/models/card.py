"""The model card in a run's `model/`: what the model is and how to prompt it, for somebody who has
only that folder.
"""

from __future__ import annotations

from typing import cast

from twcli.config.commands import TrainConfig
from twcli.data.encoder import ExampleEncoder, latent_tokens


def model_card(
    config: TrainConfig, encoder: ExampleEncoder, versions: dict[str, str], steps: int
) -> str:
    """Markdown. `template` already has the latents; `steps` are the training steps."""
    latents = cast(int, config.latents)
    names = ["".join(latent_tokens(k, config.latent_tokens)) for k in range(latents)]
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    first = encoder.template.text.replace("{z}", f"<z>{names[0]}</z>").split("{y}")[0]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [twcli, discrete-latent]
---

# A model with {latents} latent strategies

Made from `{_public(config.model)}` by `twcli train` ({made_by}).
The token between `<z>` and `</z>` selects the strategy. It is an ordinary vocabulary token,
so the model runs with plain `transformers`.

The prompt for latent 0, with the question in place of `{{x}}`:

```text
{first}
```

The other latents are {", ".join(f"`{name}`" for name in names[1:])}. Generation ends with
`{encoder.tokenizer.convert_ids_to_tokens(encoder.y_close)}`.
Tokenise with `add_special_tokens=False`.

Training used no labels, so what each latent means is not known from it.
`twcli eval` measures it, and its `report.html` shows the results.

| setting | value |
| --- | --- |
| data | `{_public(config.data)}` |
| steps, seed | {steps}, {config.seed} |
| weighting, beta | {config.weighting}, {config.beta} |
| adapt | {config.adapt} |
"""


def _public(place: str) -> str:
    """A hub name unchanged, of a local path only the last component: cards are published."""
    return (
        place.rstrip("/").rsplit("/", 1)[-1]
        if place.startswith(("/", ".", "~")) or place.count("/") > 1
        else place
    )
