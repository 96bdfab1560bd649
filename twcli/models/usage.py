"""What a model card says of using a folder: plain data, which the command line can import fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a card says of using an exported folder.

    Attributes:
        library: that loads it, as the hub calls it.
        load: lines of Python; FOLDER is the folder.
        serve: a sentence on servers.
    """

    library: str
    load: str
    serve: str
