"""LoRA by peft: low-rank updates of the linear layers and whole rows of the new tokens;
everything else stays frozen.

The adapter is injected into the backbone in place, so that other code can use the backbone as
before. Needs the extra `lora`. Shapes: K latents of P tokens, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from twcli.errors import UserError
from twcli.models.sharding import whole

ADAPTER = "default"  # peft's name for the first adapter of a model


def add_lora(
    backbone: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    rank: int,
    alpha: float,
    targets: str,
    seed: int,
) -> Any:
    """Injects LoRA and returns the `peft.PeftModel` that `save` and `merge` need.

    Args:
        token_ids: tokens whose rows of the embeddings and, if not tied, of the LM head are trained.
        targets: names of linear layers, separated by commas, or "all-linear".

    Raises:
        UserError: peft is not installed, or the model has no such layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--adapt lora: needs pip install 'twcli-cvae[lora]'") from error
    tables = (backbone.get_input_embeddings(), backbone.get_output_embeddings())
    names = [
        name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if module in tables
    ]
    tied = tables[0].weight is tables[1].weight  # peft follows the tie by itself
    chosen: str | list[str] = targets
    if targets != "all-linear":
        chosen = [name.strip() for name in targets.split(",")]
        _check_targets(backbone, chosen, tables, targets)
    linear = sorted(_linear_names(backbone, tables))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=chosen,
        exclude_modules=_not_plain(backbone) if chosen == "all-linear" else None,
        task_type="CAUSAL_LM",
        trainable_token_indices=list(token_ids)
        if tied
        else {name: list(token_ids) for name in names},
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # peft uses a deprecated name of transformers
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(backbone, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        # layers that peft cannot adapt, such as those of a state-space model
        why = " ".join(str(error).split())
        left = [name for name in linear if f"'{name}'" not in why]
        raise UserError(
            f"--lora-targets {targets}: peft refuses it for a {backbone.config.model_type} model "
            f"({why.rstrip('.')}); name the layers: --lora-targets {','.join(left)}"
        ) from error


def _not_plain(backbone: PreTrainedModel) -> list[str] | None:
    """Paths of layers that a family derives from a linear one to give something else, such as a
    router that also chooses experts: peft would add an update to it as to a linear layer.
    """
    paths = []
    for path, module in backbone.named_modules():
        kind = type(module)
        of_family = kind.__module__.startswith("transformers.models.")
        if not of_family or not issubclass(kind, nn.Linear):
            continue
        if kind.forward is not nn.Linear.forward:
            paths.append(path)
    return paths or None


def _check_targets(
    backbone: PreTrainedModel, chosen: list[str], tables: Sequence[Any], targets: str
) -> None:
    """Checks each name: peft accepts a list if one of its names matches a layer."""
    for name in chosen:
        if not name:
            raise UserError(
                f"--lora-targets {targets}: holds an empty name; write names separated by single "
                "commas"
            )
        found = [
            module for path, module in backbone.named_modules() if f".{path}".endswith(f".{name}")
        ]
        if not found:
            linear = _linear_names(backbone, tables)
            raise UserError(
                f"--lora-targets {targets}: the model has no layer {name}; it has "
                f"{', '.join(sorted(linear))}"
            )
        if any(module in tables for module in found):
            raise UserError(
                f"--lora-targets {targets}: in {name} only the latent tokens' rows are "
                "trained; leave it out"
            )


def _linear_names(backbone: PreTrainedModel, tables: Sequence[Any]) -> set[str]:
    """Names of the layers with a matrix, but for embeddings and LM head."""
    names = set()
    for path, module in backbone.named_modules():
        weight = getattr(module, "weight", None)
        if getattr(weight, "ndim", 0) == 2 and module not in tables:
            names.add(path.rsplit(".", 1)[-1])
    return names


def new_row_gradients(backbone: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Gradients (..., H) of the embedding rows of `token_ids` (...), with LoRA or without."""
    embeddings = backbone.get_input_embeddings()
    adapter = getattr(embeddings, "token_adapter", None)
    if adapter is None:
        return whole(embeddings.weight.grad)[token_ids]
    place = {token: row for row, token in enumerate(adapter.token_indices[ADAPTER])}
    rows = torch.tensor(
        [place[token] for token in token_ids.flatten().tolist()], device=token_ids.device
    )
    return adapter.trainable_tokens_delta[ADAPTER].grad[rows.view(token_ids.shape)]
