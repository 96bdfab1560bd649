"""Many samples of each prompt: the prompt goes through the model once for all latents and draws.

The keys and values of a prompt are copied to its latents' sections, theirs to the draws. Rows that
have ended leave the batch. Each row has random numbers of its own, so that what it draws does not
depend on the rows beside it, but for rounding.

Shapes: G prompts, K sections, R rows, T tokens, C tokens of a section, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import budget_batches
from twcli.kernels.body import body_of
from twcli.kernels.flash import head_size
from twcli.kernels.head import head_logits
from twcli.kernels.linear import fast_linear
from twcli.models.agreement import SHARE, why_not
from twcli.models.forward import hidden_states
from twcli.models.generation import generate, padded_left
from twcli.models.runtime import core_by_core

KEPT = 0.75  # share of a batch's rows that have not ended, below which those that have are removed
CACHE_BYTES = 2**28  # keys and values of a batch
LOGIT_BYTES = 2**27
MOST_ROWS = 256  # on a CPU more rows take longer for each token
COMPARED = 2  # prompts


@dataclass(frozen=True)
class Request:
    """Draws from G prompts, each continued by some of its K sections.

    Attributes:
        prompts: ids of what all sections of a prompt follow; may be empty lists.
        sections_GKC: int64 ids, at least one each.
        prompt_R, section_R: (R,) int64, one row a draw.
        limit_R: (R,) int64, most tokens of each draw, at least one.
    """

    prompts: Sequence[list[int]]
    sections_GKC: np.ndarray
    prompt_R: np.ndarray
    section_R: np.ndarray
    limit_R: np.ndarray

    def ids(self, row: int) -> list[int]:
        """What a row's draw continues."""
        prompt = int(self.prompt_R[row])
        section = int(self.section_R[row])
        latent_ids = self.sections_GKC[prompt, section].tolist()
        return [*self.prompts[prompt], *latent_ids]

    @property
    def before_R(self) -> np.ndarray:
        """(R,) tokens before each draw."""
        lengths = np.asarray([len(prompt) for prompt in self.prompts], np.int64)
        return lengths[self.prompt_R] + self.sections_GKC.shape[2]


@torch.no_grad()
def draw(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    request: Request,
    *,
    temperature: float,
    seed: int,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[str], list[bool]]:
    """The text of each draw, in the rows' order, and whether it ended by itself.

    Where the model disagrees with its plain forward pass, the rows are completed by `generate`.

    Args:
        temperature: 0 is greedy; else samples from the full distribution.
        seed: with the row's number it fixes the row's random numbers.
        batch_tokens: maximum tokens per batch if `generate` completes the rows.
        progress: called with the numbers of draws and of new tokens after each batch.
    """
    stops = [encoder.y_close, encoder.eos]
    if why_not_shared(model, request, encoder.pad) is not None:
        return generate(
            model,
            encoder,
            [request.ids(row) for row in range(len(request.prompt_R))],
            max_new_tokens=request.limit_R,
            temperature=temperature,
            seed=seed,
            batch_tokens=batch_tokens,
            progress=progress and (lambda count: progress(count, 0)),
        )
    total_R = request.before_R + request.limit_R
    # rows of one prompt are adjacent, so that few batches share one
    order = np.lexsort((request.section_R, request.prompt_R, -request.before_R, -total_R))
    batches = _batches(model, total_R, order)
    texts = [""] * len(order)
    ended = [False] * len(order)
    with fast_linear(model, pack=True):

        def run(rows: np.ndarray) -> list[list[int]]:
            with torch.no_grad():  # each thread has its own mode
                batch = _Batch(model, request, rows, encoder.pad)
                return batch.draw(stops, temperature, seed)

        for rows, drawn in zip(batches, core_by_core(run, batches, model.device), strict=True):
            for row, ids in zip(rows.tolist(), drawn, strict=True):
                texts[row] = encoder.decode(ids)
                ended[row] = ids[-1] in stops
            if progress:
                progress(len(rows), sum(map(len, drawn)))
    return texts, ended


@torch.no_grad()
def why_not_shared(model: PreTrainedModel, request: Request, pad: int) -> str | None:
    """Why a prompt cannot be shared among draws, None if it can: reads the longest and the shortest
    prompt both ways, each with its last section and one more token, and continues both twice and in
    another order, which states beside keys and values must follow.
    """
    order = np.argsort(request.before_R, kind="stable")
    some = np.unique(order[np.linspace(0, len(order) - 1, COMPARED).astype(int)])

    def difference() -> float:
        """Largest relative distance of the logits of two tokens from those of plain passes."""
        rows = np.tile(some, 2)
        batch = _Batch(model, request, rows, pad)
        first = batch.begin()
        turned = torch.arange(len(rows) - 1, -1, -1, device=model.device)
        batch.keep(turned)
        pads = np.full(len(rows), pad)
        second = batch.next_logits(pads)[turned]
        both = torch.stack([first, second], dim=1)
        apart = []
        for row, own in zip(rows.tolist(), both, strict=True):
            ids = torch.tensor([[*request.ids(row), pad]], device=model.device)
            states = hidden_states(model, ids)
            plain = head_logits(model, states[0, -2:])
            distance = (own - plain).float().norm()
            size = plain.float().norm()
            apart.append(float(distance / size))
        return float(np.max(apart))  # NaN where one is

    return why_not("sharing a prompt", difference, SHARE[model.dtype], "of the logits")


def _batches(model: PreTrainedModel, total_R: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Rows that are drawn together: as many as the cache of keys and values may have.

    Args:
        total_R: tokens of each row, prompt and longest completion.
        order: (R,) the rows in the order in which to cut them.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = torch.finfo(model.dtype).bits // 8
    token_bytes = 2 * config.num_hidden_layers * heads * head_size(model) * width
    vocabulary = model.get_output_embeddings().weight.shape[0]
    most = min(MOST_ROWS, max(1, LOGIT_BYTES // (4 * vocabulary)))
    parts: list[np.ndarray] = []
    for batch in budget_batches(total_R, order, max(1, CACHE_BYTES // token_bytes)):
        parts += np.split(batch, range(most, len(batch), most))
    return parts


class _Batch:
    """Rows that are drawn together."""

    def __init__(
        self, model: PreTrainedModel, request: Request, rows: np.ndarray, pad: int
    ) -> None:
        self.model = model
        self.request = request
        self.rows = rows
        self.device = model.device
        self.limit = request.limit_R[rows]
        self.prompts, row_prompt = np.unique(request.prompt_R[rows], return_inverse=True)
        pairs = np.stack([row_prompt.reshape(-1), request.section_R[rows]], axis=1)
        self.pairs, self.pair_R = np.unique(pairs, axis=0, return_inverse=True)
        self.pair_R = self.pair_R.reshape(-1)
        # new tokens are appended on the right
        ids, mask = padded_left([request.prompts[p] for p in self.prompts.tolist()], pad)
        self.ids = torch.from_numpy(ids).to(self.device)
        self.mask = torch.from_numpy(mask > 0).to(self.device)
        lengths = mask.sum(1)
        self.lengths = torch.from_numpy(lengths).to(self.device)
        self.body = body_of(model)
        self.cache = DynamicCache(config=model.config)
        # before transformers 5.24 it has another name
        names = inspect.signature(self.body.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"

    def draw(self, stop_ids: Sequence[int], temperature: float, seed: int) -> list[list[int]]:
        """Each row's new ids, its stop id included."""
        logits = self.begin()
        alive = np.arange(len(self.rows))
        steps = int(self.limit.max())
        written = np.zeros((len(alive), steps), np.int64)
        counts = np.zeros(len(alive), np.int64)  # tokens of rows that have ended
        for step in range(steps):
            chosen = self._choose(logits, alive, step, temperature, seed)
            written[alive, step] = chosen
            ended = np.isin(chosen, stop_ids) | (self.limit[alive] == step + 1)
            newly = ended & (counts[alive] == 0)
            counts[alive[newly]] = step + 1
            going = np.flatnonzero(counts[alive] == 0)
            if not len(going):
                break
            if len(going) < KEPT * len(alive):
                alive = alive[going]
                chosen = chosen[going]
                self.keep(torch.from_numpy(going).to(self.device))
            logits = self.next_logits(chosen)
        return [row[:count].tolist() for row, count in zip(written, counts.tolist(), strict=True)]

    def begin(self) -> torch.Tensor:
        """Logits (R, V) behind each row's section."""
        if self.ids.shape[1]:
            positions = self.mask.cumsum(1) - 1
            self._hidden(self.ids, positions.clamp(min=0))
        prompt, latent = self.pairs.T
        pair_prompt = torch.from_numpy(prompt.copy()).to(self.device)
        self.keep(pair_prompt)
        sections = self.request.sections_GKC[self.prompts[prompt], latent]
        section_ids = torch.from_numpy(sections).to(self.device)
        logits = self._forward(section_ids)
        pair_R = torch.from_numpy(self.pair_R).to(self.device)
        self.keep(pair_R)
        return logits[pair_R]

    def next_logits(self, chosen: np.ndarray) -> torch.Tensor:
        """Logits (R, V) behind one more token of each row."""
        chosen_R1 = chosen[:, None]
        ids_R1 = torch.from_numpy(chosen_R1).to(self.device)
        return self._forward(ids_R1)

    def keep(self, index: torch.Tensor) -> None:
        """Continues with these rows of the batch, each as often as it is named; the others and
        their keys and values are dropped.
        """
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        self.lengths = self.lengths[index]

    def _forward(self, ids_RT: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) behind the last of some tokens that every row continues with."""
        rows, new = ids_RT.shape
        seen = self.mask.new_ones(rows, new)
        self.mask = torch.cat([self.mask, seen], dim=1)
        columns = torch.arange(new, device=self.device)
        positions = self.lengths[:, None] + columns
        self.lengths = self.lengths + new
        hidden = self._hidden(ids_RT, positions)
        return head_logits(self.model, hidden[:, -1])

    def _hidden(self, ids_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
        """(R, T, H) last hidden states of the next ids (R, T), which enter the cache."""
        output = self.body(
            input_ids=ids_RT,
            attention_mask=self.mask,
            position_ids=positions_RT,
            use_cache=True,
            **{self.cache_name: self.cache},
        )
        return output.last_hidden_state

    def _choose(
        self, logits: torch.Tensor, alive: np.ndarray, step: int, temperature: float, seed: int
    ) -> np.ndarray:
        """The next token of each row.

        Args:
            logits: (R, V) of the rows that are still written.
            alive: (R,) their positions in the batch.
            temperature: 0 is greedy.

        Returns:
            (R,) token ids.
        """
        if temperature == 0:
            return logits.argmax(-1).cpu().numpy()
        shares = (logits.float() / temperature).softmax(-1).cumsum(-1)
        # drawn for all rows, so that a row's numbers do not depend on its batch
        rng = np.random.default_rng([seed, step])
        numbers = rng.random(len(self.request.prompt_R), np.float32)
        drawn = torch.from_numpy(numbers[self.rows[alive]]).to(self.device)
        reached = drawn[:, None] * shares[:, -1:]
        index = torch.searchsorted(shares, reached, right=True)[:, 0]
        return index.clamp(max=shares.shape[1] - 1).cpu().numpy()
