"""One record of the data, as all else here takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One record: prompt x, completion y and, for evaluation only, its strategy label.

    Attributes:
        x: the prompt. Of a conversation a readable text of it, for reports and judges only.
        y: the completion. Of a conversation the text of the target turn.
        messages: of a conversation all turns, the last one being the assistant's turn to learn;
            for a prompt alone, its turns. None where the record is two texts.
        tools: the functions offered in the conversation, as the chat template takes them.
        where: the file with the line or record, for messages.
    """

    x: str
    y: str
    strategy: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: list[Any] | None = None
    where: str = field(default="", compare=False)
