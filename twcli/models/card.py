"""The model card in a run's `model/`: what the model is and how it is asked, for somebody
who has only that folder.
"""

from __future__ import annotations

from typing import cast

from twcli.config.commands import TrainConfig
from twcli.data.template import Template, latent_tokens


def model_card(
    config: TrainConfig, template: Template, versions: dict[str, str], steps: int
) -> str:
    """Markdown. `template` holds the latents already; `steps` were made."""
    latents = cast(int, config.latents)
    names = ["".join(latent_tokens(k, config.latent_tokens)) for k in range(latents)]
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    first = template.frame.text.replace("{z}", f"<z>{names[0]}</z>").split("{y}")[0]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [twcli, discrete-latent]
---

# A model with {latents} latent strategies

Made from `{_public(config.model)}` by `twcli train` ({made_by}).
The token between `<z>` and `</z>` picks the strategy; it is ordinary vocabulary,
so plain `transformers` is all that it takes.

The prompt for latent 0, `{{x}}` being the question:

```text
{first}
```

The other latents are {", ".join(f"`{name}`" for name in names[1:])}. Generation ends with
`{template.tokenizer.convert_ids_to_tokens(template.y_close)}`.
Tokenise with `add_special_tokens=False`.

What each latent means, and how well, is not known from the training: it read no labels.
`twcli eval` measures it, and its `report.html` shows it.

| setting | value |
| --- | --- |
| data | `{_public(config.data)}` |
| steps, seed | {steps}, {config.seed} |
| weighting, beta | {config.weighting}, {config.beta} |
| adapt | {config.adapt} |
"""


def _public(place: str) -> str:
    """A hub name as it is, of a local path the last part alone: a card is made to be shown."""
    return (
        place.rstrip("/").rsplit("/", 1)[-1]
        if place.startswith(("/", ".", "~")) or place.count("/") > 1
        else place
    )
