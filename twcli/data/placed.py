"""A record with its place in the data, for messages."""

from __future__ import annotations

from collections.abc import Generator

from twcli.data.fields import Record

# a record is a prompt and a completion, not a corpus; keeps a broken file from filling memory
MAX_LINE_BYTES = 16 * 2**20

Placed = tuple[str, Record]
Reading = Generator[Placed, None, None]
