"""Whether the Hugging Face hub has a model or data set, asked once.

Its libraries ask again for half a minute where a name is wrong or the network is down.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

from twcli.errors import UserError

SECONDS = 3.0  # that an answer may take
# The page of a model or data set, and not that of a file in it.
PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)"
    r"(?:/?|/(?:tree|viewer)/[^?]*)(?:\?.*)?"
)


def look_for_model(source: str) -> None:
    """Raises UserError if a name is neither that of something here nor on the hub."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).exists() or Path(source).suffix == ".gguf":
        return
    if name := name_on_page(source):
        raise UserError(f"{source}: is an address; give the name, {name}")
    if not is_name(source):
        raise UserError(
            f"{source}: no such folder here, and it cannot be a name on the hub, which is "
            "OWNER/NAME; check the path"
        )
    if not has(source, "model") and try_to_load_from_cache(source, "config.json") is None:
        raise UserError(
            f"{source}: no such folder here; the hub cannot be reached, and the model is not among "
            "those loaded before"
        )


def is_name(source: str) -> bool:
    """Whether it can be a name on the hub: OWNER/NAME, or NAME alone."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) is not None


def name_on_page(address: str) -> str | None:
    """The name that `address` shows, where it is the page of a model or data set on the hub."""
    page = PAGE.fullmatch(address)
    return page[1] if page else None


@functools.cache
def has(name: str, kind: str) -> bool:
    """True if the hub has it. False if the hub cannot be reached: for the rest of this process the
    libraries then look only among what was loaded before.

    Args:
        kind: "model" or "dataset".

    Raises:
        UserError: the hub does not have it, or not for this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        if kind == "model":
            HfApi().model_info(name, timeout=SECONDS)
        else:
            HfApi().dataset_info(name, timeout=SECONDS)
    except GatedRepoError as error:
        raise UserError(
            f"{name}: the hub gives it only to those who were granted access; ask for it there, "
            "and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{name}: no such file or folder here, and no such {kind} on the hub; check the name, "
            "or log in with `hf auth login` if it is private"
        ) from error
    except Exception:  # no network, a proxy that refuses, offline mode: nothing is known of it
        _go_offline()
        return False
    return True


def _go_offline() -> None:
    """Has the libraries ask the hub no more, also those that are not loaded yet."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # `datasets` copies it when it is loaded
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
