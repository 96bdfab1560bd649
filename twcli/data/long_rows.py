"""Rows that are longer than the limit (`--too-long`): they stop the call, are left out, or lose the
beginning of x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twcli.data.whole_text import TokenRow
from twcli.errors import UserError

ERROR, SKIP, TRUNCATE_LEFT = "error", "skip", "truncate-left"


@dataclass
class LongRows:
    """What is done with rows that are too long, and how many there were.

    Attributes:
        limit: tokens of a row, latent section included.
        policy: "error", "skip" or "truncate-left".
        skipped, shortened: rows so far.
        longest: tokens of the longest one; `place` is where it is, `prompt` and `target` its parts.
    """

    limit: int
    policy: str = ERROR
    skipped: int = 0
    shortened: int = 0
    longest: int = 0
    place: str = ""
    prompt: int = 0
    target: int = 0

    def fit(self, row: TokenRow, around: int, place: str) -> TokenRow | None:
        """The row if it fits, else as `truncate-left` leaves it; None where it is left out.

        x, or the turn that is answered, loses tokens from its beginning; at least one stays. The
        rest of the prompt is the template's or older turns, and y is never cut.

        Args:
            around: tokens that come to those of the row.
        """
        prompt = len(row.before_z) + len(row.before_y)
        target = len(row.target)
        length = prompt + target + around
        over = length - self.limit
        if over <= 0:
            return row
        if length > self.longest:
            self.longest = length
            self.place = place
            self.prompt = prompt
            self.target = target
        x_length = row.x_stop - row.x_start
        if self.policy != TRUNCATE_LEFT or x_length <= over:
            self.skipped += 1
            return None
        self.shortened += 1
        before_x = row.before_z[: row.x_start]
        rest_of_x = row.before_z[row.x_start + over :]
        return replace(row, before_z=[*before_x, *rest_of_x], x_stop=row.x_stop - over)

    def check(self, rows: int) -> None:
        """Raises UserError if rows stop the call: those that are too long, or all of them."""
        if not self.skipped or (self.policy != ERROR and self.skipped < rows):
            return
        if self.policy == ERROR:
            advice = "give --too-long skip or truncate-left, shorten them, or raise --max-length"
        else:
            advice = "so no row is left; raise --max-length"
        others = f"so are {self.skipped:,} of {rows:,} rows, of which this is the longest"
        if self.skipped == 1:
            others = f"of {rows:,} rows only this one is too long"
        raise UserError(
            f"{self.place}: {self.longest:,} tokens with the latent section ({self.prompt:,} of "
            f"the prompt, {self.target:,} of y) are more than the limit of {self.limit}; {others}; "
            f"{advice} within the model's context"
        )

    def counts(self) -> dict[str, int]:
        """How many rows the policy changed, for a fingerprint; empty where there was none."""
        counts = {SKIP: self.skipped, TRUNCATE_LEFT: self.shortened}
        return {name: count for name, count in counts.items() if count}

    def notes(self, rows: int) -> list[str]:
        """Lines to show to the user."""
        done = []
        if self.shortened:
            done.append(f"{self.shortened:,} lose the beginning of x")
        if self.skipped:
            reason = ": their y alone fills the limit" if self.policy == TRUNCATE_LEFT else ""
            done.append(f"{self.skipped:,} are left out{reason}")
        if not done:
            return []
        return [
            f"too long: of {rows:,} rows {', '.join(done)}; the limit is {self.limit:,} tokens, "
            f"the longest row has {self.longest:,} ({self.place})"
        ]
