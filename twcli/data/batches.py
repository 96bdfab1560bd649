"""Rows of the encoded data and of the cache become seeded, padded batches.

Shapes: B rows, T tokens of the z-free sequence, L = T + 2 + P with the latent
section, S supervised tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.equal_rows import index_type
from twcli.data.groups import Groups
from twcli.data.padding import PassLengths, apart, budget_batches, gather_padded, prompt_by_prompt
from twcli.storage.cache import Cache

POOL = 64  # batches sorted by length together: little padding, and still a random order


@dataclass(frozen=True)
class Batch:
    """One batch of B records.

    Attributes:
        rows_B: row numbers in the data.
        prompt_B: rows of one prompt share a number in 0 .. G - 1; `leader_G` is the
            first row of each prompt.
        length_B: tokens of each row's z-free sequence.
        plain_BT: z-free ids; `plain_first_B` is the column of `<y>`, which
            predicts the first target.
        latent_BL: ids with the latent section, its P slots still pads; `slot_B`
            is the first slot's column.
        targets_BS, active_BS: supervised ids and where they are real.
        baseline_BS: b_t in nats, zero where not active; None without a cache.
    """

    rows_B: torch.Tensor
    prompt_B: torch.Tensor
    leader_G: torch.Tensor
    length_B: torch.Tensor
    plain_BT: torch.Tensor
    plain_first_B: torch.Tensor
    latent_BL: torch.Tensor
    slot_B: torch.Tensor
    latent_first_B: torch.Tensor
    targets_BS: torch.Tensor
    active_BS: torch.Tensor
    baseline_BS: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The batch on that device; the copy is asynchronous."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                value = value.to(device, non_blocking=True)
            moved[field.name] = value
        return Batch(**moved)


def collate(
    rows: np.ndarray, encoded: Encoded, encoder: ExampleEncoder, cache: Cache | None
) -> Batch:
    """Builds the batch of these rows with array arithmetic only.

    Args:
        rows: (B,) row numbers.
        cache: b_t of all rows; None where the loss or the model needs none.
    """
    starts = encoded.offsets[rows]
    lengths = encoded.lengths[rows]
    prompts = encoded.prompt_lengths[rows]
    targets = encoded.target_lengths[rows]
    target_ids = gather_padded(encoded.ids, starts + prompts + 1, targets, encoder.pad)
    active = np.arange(target_ids.shape[1]) < targets[:, None]
    baseline = None
    if cache is not None:
        flat, counts = cache.read(rows)
        baseline = torch.from_numpy(
            gather_padded(flat, np.cumsum(counts) - counts, counts, 0.0).astype(np.float32)
        )
    _, leaders, prompt = np.unique(
        encoded.prompt_index[rows], return_index=True, return_inverse=True
    )
    return Batch(
        rows_B=torch.from_numpy(rows),
        prompt_B=torch.from_numpy(prompt),
        leader_G=torch.from_numpy(leaders),
        length_B=torch.from_numpy(lengths),
        plain_BT=_ids(gather_padded(encoded.ids, starts, lengths, encoder.pad)),
        plain_first_B=torch.from_numpy(prompts),
        latent_BL=_ids(_with_latent_section(starts, lengths, prompts, encoded, encoder)),
        slot_B=torch.from_numpy(prompts + encoder.section_shift + 1),
        latent_first_B=torch.from_numpy(prompts + encoder.latent_section),
        targets_BS=_ids(target_ids),
        active_BS=torch.from_numpy(active),
        baseline_BS=baseline,
    )


def _with_latent_section(
    starts: np.ndarray,
    lengths: np.ndarray,
    prompts: np.ndarray,
    encoded: Encoded,
    encoder: ExampleEncoder,
) -> np.ndarray:
    """Ids with a latent section put into each row, whose latent tokens are still padding.

    Args:
        starts, lengths: (B,) where a row begins in `encoded.ids`, and its tokens there.
        prompts: (B,) tokens before y.

    Returns:
        (B, T) padded on the right.
    """
    latent = [encoder.pad] * encoder.latent_tokens
    section = np.asarray([encoder.z_open, *latent, encoder.z_close])
    columns = np.arange(lengths.max() + len(section))
    # position relative to the section's start
    after = columns - prompts[:, None] - encoder.section_shift
    source = np.where(after < 0, columns, columns - len(section))
    ids = encoded.ids[np.clip(starts[:, None] + source, 0, len(encoded.ids) - 1)]
    inside = (after >= 0) & (after < len(section))
    of_section = section[np.clip(after, 0, len(section) - 1)]
    ids = np.where(inside, of_section, ids)
    real = columns < lengths[:, None] + len(section)
    padded: np.ndarray = np.where(real, ids, encoder.pad)
    return padded


def _ids(array: np.ndarray) -> torch.Tensor:
    """Integers (..) as torch's int64."""
    wide = array.astype(np.int64)
    return torch.from_numpy(wide)


def drop_history(batch: Batch, rate: float, rng: np.random.Generator, pad: int) -> Batch:
    """The batch with each input token of y in the generator's sequence replaced by
    `pad` with probability `rate`.

    Targets, weights and the z-free sequence are unchanged (word dropout; Bowman et al. 2016). All K
    branches of a row lose the same tokens, so that they differ in z only.
    """
    followed_BS = batch.active_BS[:, 1:]  # the closing tag predicts no supervised token
    draws = rng.random(followed_BS.shape)
    draws_BS = torch.from_numpy(draws).to(followed_BS.device)
    dropped_BS = followed_BS & (draws_BS < rate)
    row, column = dropped_BS.nonzero(as_tuple=True)
    place = batch.latent_first_B[row] + 1 + column
    latent_BL = batch.latent_BL.clone()
    latent_BL[row, place] = pad
    return replace(batch, latent_BL=latent_BL)


def leading(mass_N: torch.Tensor, share: float) -> tuple[int, float]:
    """The smallest count of leading entries that leaves at most `share` of the mass to the others,
    0 if there is no mass; and the share that is left.
    """
    behind_N = mass_N.flip(0).cumsum(0).flip(0)  # mass of each entry and of those after it
    whole = behind_N[0]
    count = int((behind_N > share * whole).sum())
    if not 0 < count < len(behind_N):
        return count, 0.0
    return count, float(behind_N[count] / whole)


def opening(batch: Batch, share: float) -> tuple[Batch, float]:
    """The batch with every y cut off after the last token with relevant b_t, and the share of the
    batch's b_t in the tokens that are cut off.

    That share is at most `share`. The later tokens are predictable from y_<t for any z, so branches
    that are only compared need no forward pass to the end. Nothing is cut if there are no weights,
    all weights are 0, or `share` is 0.
    """
    if batch.baseline_BS is None or not share:
        return batch, 0.0
    sums_S = batch.baseline_BS.sum(0, dtype=torch.float64)
    needed, left = leading(sums_S, share)
    if needed in (0, batch.baseline_BS.shape[1]):
        return batch, 0.0
    plain_end = int(batch.plain_first_B.max()) + needed
    latent_end = int(batch.latent_first_B.max()) + needed
    cut = replace(
        batch,
        plain_BT=batch.plain_BT[:, :plain_end],
        latent_BL=batch.latent_BL[:, :latent_end],
        targets_BS=batch.targets_BS[:, :needed],
        active_BS=batch.active_BS[:, :needed],
        baseline_BS=batch.baseline_BS[:, :needed],
    )
    return cut, left


def length_classes(
    encoded: Encoded, encoder: ExampleEncoder, pass_lengths: PassLengths
) -> np.ndarray:
    """Numbers of rows of which only equal ones may share a batch: both their z-free sequences and
    those with the latent section are of one class.

    Returns:
        (N,) int64; all 0 where the model's passes take any lengths together.
    """
    if not pass_lengths:
        return np.zeros(len(encoded), np.int64)
    plain_lengths = encoded.lengths
    latent_lengths = plain_lengths + encoder.latent_section
    plain = pass_lengths.classes(plain_lengths)
    with_section = pass_lengths.classes(latent_lengths)
    pairs = np.stack([plain, with_section], axis=1)
    _, classes = np.unique(pairs, axis=0, return_inverse=True)
    return classes.reshape(-1)


def forward_batches(
    encoded: Encoded,
    rows: np.ndarray,
    *,
    batch_tokens: int,
    branches: int,
    shared: bool,
    classes: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Batches of positions in `rows`, longest first: sorted by length, which pads least, or by
    prompt, whichever needs fewer tokens in the forward pass.

    Args:
        batch_tokens: maximum z-free tokens per batch, padding included.
        branches: sequences per row in the forward pass.
        shared: whether each prompt of a batch is computed once, instead of with each sequence.
        classes: (N,) as of `length_classes`; None if all rows may share a batch.
    """
    if classes is not None:
        found: list[np.ndarray] = []
        for part in apart(np.arange(len(rows)), classes[rows]):
            batches = forward_batches(
                encoded, rows[part], batch_tokens=batch_tokens, branches=branches, shared=shared
            )
            found += [part[batch] for batch in batches]
        return found
    lengths = encoded.lengths[rows]
    prompt = encoded.prompt_index[rows]
    prompts = encoded.prompt_lengths[rows]
    targets = encoded.target_lengths[rows]

    def tokens(batch: np.ndarray) -> int:
        """Tokens that a pass over these rows computes, padding included."""
        sequences = len(batch) * branches
        if shared:
            read = len(np.unique(prompt[batch]))
        else:
            read = sequences
        of_prompts = read * prompts[batch].max()
        of_targets = sequences * targets[batch].max()
        return int(of_prompts + of_targets)

    orders = np.argsort(-lengths, kind="stable"), prompt_by_prompt(lengths, prompt)
    ways = [budget_batches(lengths, order, batch_tokens) for order in orders]
    return min(ways, key=lambda batches: sum(map(tokens, batches)))


@dataclass(frozen=True)
class _Together:
    """Rows that share a batch if the budget permits: those of one prompt and class.

    Attributes:
        groups: G of them.
        longest: (G,) tokens of each one's longest row.
        classes: (G,) its class.
    """

    groups: Groups
    longest: np.ndarray
    classes: np.ndarray

    def followed_by(self, other: _Together) -> _Together:
        """These groups and then the others."""
        return _Together(
            self.groups.followed_by(other.groups),
            np.concatenate([self.longest, other.longest]),
            np.concatenate([self.classes, other.classes]),
        )


class Batches(Sequence[np.ndarray]):
    """Row numbers of an epoch's batches, in one array: an array of its own for each batch would
    take twice as much.

    Args:
        rows: (R,) batch by batch, in the order in which they were made.
        sizes: rows of each batch, in that order.
        order: (batches,) of training.
    """

    def __init__(self, rows: np.ndarray, sizes: list[int], order: np.ndarray) -> None:
        self._rows = rows
        self._order = order
        self._bounds = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: Any) -> Any:
        """(B,) int64 rows of one batch, or a list of them for a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        batch = self._order[place]
        start = self._bounds[batch]
        stop = self._bounds[batch + 1]
        return self._rows[start:stop].astype(np.int64)


class BatchSampler:
    """Batches of each epoch. They depend only on the seed and the epoch's number, so that a resumed
    run repeats them.

    Rows of one prompt stay in one batch if the budget permits: the completions of a prompt are
    assigned to latents together.

    Args:
        lengths: (N,) tokens of each row's z-free sequence.
        prompts: (N,) rows of one prompt share a number.
        batch_tokens: maximum z-free tokens per batch, padding included; the K branches are not
            counted.
        seed: any number of integers.
        rows: the rows to use; None for all.
        classes: (N,) as of `length_classes`: rows of different classes share no batch, even if they
            are of one prompt. None if all rows may share one.
        repeats: (N,) of at least 1, how often an epoch has each row on average: the whole part for
            certain, the rest by chance. None for once.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        prompts: np.ndarray,
        *,
        batch_tokens: int,
        seed: Sequence[int],
        rows: np.ndarray | None = None,
        classes: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ) -> None:
        narrow = index_type(len(lengths))
        if rows is None:
            every = np.arange(len(lengths), dtype=narrow)
        else:
            every = rows.astype(narrow)
        if classes is None:
            classes = np.zeros(len(lengths), np.int8)
        self._classes = classes
        self.lengths = lengths
        self.prompts = prompts
        self.repeats = repeats
        self.batch_tokens = batch_tokens
        self.seed = list(seed)
        self._rows = every if repeats is not None else every[:0]  # in the order of the draws
        self._once = self._grouped(every, whole=rows is None)

    def epoch(self, number: int) -> Batches:
        """The epoch's batches in the order of training."""
        rng = np.random.default_rng([*self.seed, number])
        together = self._once
        if self.repeats is not None:
            together = self._with_repetitions(self.repeats[self._rows], rng)
        groups = together.groups
        order = rng.permutation(len(groups))
        tokens = np.multiply(groups.sizes, together.longest, dtype=np.int64)
        if len(order):
            mean = max(1, int(np.mean(tokens)))
        else:
            mean = 1
        pool = max(1, POOL * self.batch_tokens // mean)
        rows = np.empty(len(groups.rows), groups.rows.dtype)
        filled = 0
        sizes: list[int] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(together.longest[part], kind="stable")]
            for alike in apart(part, together.classes):
                for batch in self._cut(groups[alike], together.longest[alike]):
                    rows[filled : filled + len(batch)] = batch
                    sizes.append(len(batch))
                    filled += len(batch)
        return Batches(rows, sizes, rng.permutation(len(sizes)))

    def stream(self, skip: int = 0) -> Iterator[np.ndarray]:
        """An endless stream of batches, epoch after epoch; empty if there are no rows.

        Args:
            skip: batches to leave out at the beginning.

        Yields:
            (B,) row numbers of a batch.
        """
        number = 0
        while len(self._once.groups):
            batches = self.epoch(number)
            yield from (batches[place] for place in range(skip, len(batches)))
            skip = max(0, skip - len(batches))
            number += 1

    def _grouped(self, rows: np.ndarray, *, whole: bool = False) -> _Together:
        """Rows in groups that share a prompt and a class, which are batched together.

        Args:
            rows: (R,) row numbers; repeated ones stay together.
            whole: they are all rows in their order, of which no copy is made.
        """
        prompts = self.prompts
        classes = self._classes
        lengths = self.lengths
        if not whole:
            prompts = prompts[rows]
            classes = classes[rows]
            lengths = lengths[rows]
        changes = _changes(prompts, classes)
        ascending = (prompts[1:] > prompts[:-1]) | ~changes
        if not ascending.all():
            order = np.lexsort((classes, prompts))
            rows = rows[order]
            prompts = prompts[order]
            classes = classes[order]
            lengths = lengths[order]
            changes = _changes(prompts, classes)
        begins = np.append([True], changes)[: len(rows)]
        starts = np.flatnonzero(begins).astype(rows.dtype)
        longest = np.empty(0, np.int32)
        if len(rows):
            longest = np.maximum.reduceat(lengths, starts).astype(np.int32)
        sizes = np.diff(starts, append=len(rows)).astype(rows.dtype)
        return _Together(Groups(rows, starts, sizes), longest, classes[starts])

    def _with_repetitions(self, repeats_R: np.ndarray, rng: np.random.Generator) -> _Together:
        """Every row and its repetitions, which are groups of their own: two of one row are seldom
        in one batch.
        """
        times_R = np.floor(repeats_R + rng.random(len(repeats_R))).astype(np.int64)
        together = self._once
        for times in range(1, int(times_R.max(initial=1))):
            together = together.followed_by(self._grouped(self._rows[times_R > times]))
        return together

    def _cut(self, groups: Groups, longest_G: np.ndarray) -> list[np.ndarray]:
        """Batches within the budget, from groups sorted by their longest row."""
        batches: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        count = 0
        for rows, longest in zip(groups, longest_G.tolist(), strict=True):
            if waiting and longest * (count + len(rows)) > self.batch_tokens:
                batches.append(np.concatenate(waiting))
                waiting = []
                count = 0
            # the rows of this prompt alone exceed the budget
            if longest * len(rows) > self.batch_tokens:
                batches += budget_batches(self.lengths, rows, self.batch_tokens)
                continue
            waiting.append(rows)
            count += len(rows)
        if waiting:
            return [*batches, np.concatenate(waiting)]
        return batches


def _changes(prompts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(R - 1,) bool: where the next row has another prompt or class."""
    changes: np.ndarray = (prompts[1:] != prompts[:-1]) | (classes[1:] != classes[:-1])
    return changes
