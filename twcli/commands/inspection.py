"""`twcli inspect`: the content of a cache or a run folder, what it was computed from, and whether
it is intact. A cache needs no torch, whose import would take longer than the rest; what needs it is
imported where it is used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twcli.config.inputs import ATTENTION, AUTO, PRECISIONS
from twcli.config.objective import TAU
from twcli.config.train import TrainConfig
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.long_rows import ERROR, SKIP, TRUNCATE_LEFT
from twcli.data.template import CHAT
from twcli.errors import UserError
from twcli.evaluation.verdict import evaluation_of
from twcli.storage.cache import Cache
from twcli.training.degenerate import DEGENERATE_FLAT, DEGENERATE_ROWS

if TYPE_CHECKING:
    from twcli.storage.run_folder import RunFolder

BLOCK_ROWS = 8192
OPENING = (1, 3, 8)  # report the share of all nats in the first 1, 3 and 8 tokens of y
QUANTILES = (0.5, 0.9, 0.99)
BINS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nats: lower bounds of the histogram's bins
LITTLE = 2.0  # a smaller growth of the gradient by weighting counts as "a little"
SHOWN = 3  # rows whose tokens are shown
SKETCHED = 200_000  # sampled values from which the quantiles are computed


def inspect(
    path: str,
    *,
    verify: bool,
    model: str | None = None,
    data: str | None = None,
    format: str = AUTO,
    each_turn: bool = False,
    x_field: str = "x",
    y_field: str = "y",
    template: str | None = None,
) -> dict[str, Any]:
    """Plain JSON types. `kind` is "cache", "run" or, of a folder of `twcli train --seeds`, "runs";
    `problems` lists what is damaged, null without `verify`. A run has its `verdict`, as `train` or
    `eval` stored it last, null where neither has; several runs are `runs`, by the name of the
    folder.

    Args:
        model, data: check that the cache was made from them; both or neither, with `verify` only.
        format, x_field, y_field, each_turn: of the data.
        template: as in `twcli precompute`; needed only for a cache that was made with a template
            file.

    Raises:
        UserError: neither a cache nor a run folder; the model, the data or the template cannot be
            read; or a value of b_t is not a valid NLL.
    """
    _check_call(path, verify=verify, model=model, data=data, template=template)
    if Path(path).is_dir():
        from twcli.storage.run_folder import RunFolder

        folder = RunFolder(path)
        if folder.several():
            return _inspect_runs(folder, verify)
        return _inspect_run(folder, verify)
    fields = {"format": format, "x_field": x_field, "y_field": y_field, "each_turn": each_turn}
    with Cache(path) as cache:
        problems = cache.verify() if verify else None
        texts: list[dict[str, Any]] = []
        if data is not None:
            assert model is not None and problems is not None  # --model and --verify came along
            foreign, texts = _compared(cache, model, data, fields, template)
            problems += foreign
        return {
            "kind": "cache",
            "path": path,
            "rows": cache.rows,
            "tokens": cache.tokens,
            "profile": None if problems else profile_of(cache),
            "texts": [] if problems else texts,
            "fingerprint": cache.fingerprint,
            "problems": problems,
        }


def _check_call(
    path: str, *, verify: bool, model: str | None, data: str | None, template: str | None
) -> None:
    """Checks that the arguments of `inspect` belong together and that there is something at `path`.

    Raises:
        UserError: one asks for another that is missing, or there is no such file.
    """
    comparable = verify and not Path(path).is_dir()
    if (model is None) != (data is None) or (data is not None and not comparable):
        raise UserError(
            "--model and --data: give both, with --verify, to check what a cache was made from"
        )
    if template is not None and data is None:
        raise UserError("--template: needs --model and --data")
    if not Path(path).exists():
        raise UserError(
            f"{path}: no such file or folder; inspect takes a cache (F.h5) or a run folder"
        )


def _compared(
    cache: Cache, model: str, data: str, fields: dict[str, Any], template: str | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """(how the cache's fingerprint or rows differ from those of the model and data; b_t of a few
    rows, token by token).
    """
    # Settings that this call does not have are taken from the cache's fingerprint, if valid.
    made = cache.fingerprint
    if made.get("dtype") in PRECISIONS:
        precision = made["dtype"]
    else:
        precision = PRECISIONS[0]
    if made.get("attention") in ATTENTION:
        attention = made["attention"]
    else:
        attention = ATTENTION[0]
    if isinstance(made.get("template"), dict):
        name = made["template"].get("name")
    else:
        name = None
    if name == "file" and template is None:
        raise UserError(
            f"{cache.path}: was made with --template FILE; give the same --template to compare it"
        )
    from twcli.models.inputs import open_inputs

    if name == CHAT:
        settings = made["template"].get("settings")
    else:
        settings = None
    if isinstance(made.get("too_long"), dict):
        changed = made["too_long"]
    else:
        changed = {}
    policy = next((name for name in (TRUNCATE_LEFT, SKIP) if name in changed), ERROR)
    if made.get("latent_tokens") in range(1, 65):
        latent_tokens = made["latent_tokens"]
    else:
        latent_tokens = 1
    inputs = open_inputs(
        model,
        data,
        chat_settings=settings if isinstance(settings, dict) else None,
        **fields,
        template=template or (CHAT if name == CHAT else "tags"),
        precision=precision,
        attention=attention,
        too_long=policy,
        empty=SKIP if "empty" in made else ERROR,
        latent_tokens=latent_tokens,
    )
    if made.get("max_length") in range(1, inputs.max_length + 1):
        limit = made["max_length"]
        encoded = inputs.encoder.encode(
            inputs.records, max_length=limit, source=data, too_long=policy
        )
        inputs = replace(inputs, max_length=limit, encoded=encoded)
    encoded = inputs.encoded
    try:
        cache.check(inputs.fingerprint(), encoded.row_hash)
    except UserError as error:
        return [str(error)], []
    return [], [_text(cache, inputs.encoder, encoded, row) for row in encoded.spread_rows(SHOWN)]


def _text(cache: Cache, encoder: ExampleEncoder, encoded: Encoded, row: int) -> dict[str, Any]:
    """`line` of the data, the `prompt` with its template tokens, and `pieces`: (text, b_t in nats)
    of each token of y.
    """
    before = encoded.ids[encoded.offsets[row] :][: encoded.prompt_lengths[row] + 1]
    ids = encoded.y_ids(row)
    nats = cache.read(np.asarray([row]))[0][: len(ids)].tolist()
    return {
        "line": encoded.number(row) + 1,
        "prompt": encoder.tokenizer.decode(before),
        "pieces": list(zip(encoder.pieces(ids), nats, strict=True)),
    }


def profile_of(cache: Cache) -> dict[str, Any]:
    """How b_t is spread over y, in nats and tokens; reads the cache once, in blocks.

    `mean` is nats a token, `example` nats an example. `opening` gives the share of all nats that
    lies in the first 1, 3 and 8 tokens of y. `informative` is the mean over rows with any mass of
    (sum w)^2 / (T sum w^2), the effective t0 / T: weighting strengthens the posterior's gradient by
    about its inverse. `uniform_rows` is the share of rows whose sum is at most the default tau,
    which train on the uniform average. Quantiles are over evenly spaced tokens. `histogram` gives
    the share of the tokens and of the nats in each bin, with the bin's lower bound in nats.
    `verdict` says in a sentence whether weighting can help on this data.

    Raises:
        UserError: a value is negative or not finite, which a file with the
            right checksums can hold.
    """
    sums = _Sums()
    step = max(1, cache.tokens // SKETCHED)
    sampled = []
    seen = 0
    for _, nll, lengths in cache.stream(BLOCK_ROWS):
        if not (np.isfinite(nll) & (nll >= 0)).all():
            raise UserError(
                f"{cache.path}: values of /nll are negative or not finite; `twcli inspect "
                "--verify` counts them"
            )
        sums.add(nll, lengths)
        sampled.append(nll[(-seen) % step :: step])
        seen += len(nll)
    informative = sums.informative / sums.massive if sums.massive else None
    uniform_rows = sums.uniform / cache.rows
    return {
        "mean": sums.nats / max(cache.tokens, 1),
        "example": sums.nats / cache.rows,
        "quantiles": _quantiles(np.concatenate(sampled)),
        "opening": _opening_shares(sums),
        "histogram": _histogram(sums, cache.tokens),
        "informative": informative,
        "uniform_rows": uniform_rows,
        "verdict": _verdict(informative, uniform_rows),
    }


class _Sums:
    """Sums over rows of b_t.

    Attributes:
        nats: of all tokens.
        opening: nats in the first tokens of y, for each of `OPENING`.
        bin_tokens, bin_nats: tokens and nats in each of `BINS`.
        informative: sum over rows of (sum w)^2 / (T sum w^2).
        massive: rows with any mass.
        uniform: rows whose sum is at most the default tau.
    """

    def __init__(self) -> None:
        self.nats = 0.0
        self.opening = np.zeros(len(OPENING))
        self.bin_tokens = np.zeros(len(BINS))
        self.bin_nats = np.zeros(len(BINS))
        self.informative = 0.0
        self.massive = 0
        self.uniform = 0

    def add(self, nll: np.ndarray, lengths: np.ndarray) -> None:
        """Adds rows of these lengths (R,), whose nats `nll` has one row after the other."""
        starts = np.cumsum(lengths) - lengths
        self._add_rows(nll, starts, lengths)
        column = np.arange(len(nll)) - np.repeat(starts, lengths)
        for number, first in enumerate(OPENING):
            opening = nll[column < first]
            self.opening[number] += opening.sum(dtype=np.float64)
        count = len(BINS)
        bins = np.searchsorted(BINS, nll, side="right") - 1
        self.bin_tokens += np.bincount(bins, minlength=count)
        self.bin_nats += np.bincount(bins, nll, minlength=count)

    def _add_rows(self, nll: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Adds what is a figure of whole rows, which begin at `starts` (R,) of `nll`."""
        filled = lengths > 0
        sums = np.zeros(len(lengths))
        squares = np.zeros(len(lengths))
        if len(nll):
            sums[filled] = np.add.reduceat(nll, starts[filled], dtype=np.float64)
            squares[filled] = np.add.reduceat(nll.astype(np.float64) ** 2, starts[filled])
        mass = squares > 0
        effective = sums[mass] ** 2 / (lengths[mass] * squares[mass])
        self.nats += float(sums.sum())
        self.informative += float(effective.sum())
        self.massive += int(mass.sum())
        self.uniform += int((sums <= TAU).sum())


def _quantiles(sample: np.ndarray) -> dict[str, float | None]:
    """In nats a token, by the quantile as text."""
    if not len(sample):
        return {str(q): None for q in QUANTILES}
    return {str(q): float(np.quantile(sample, q)) for q in QUANTILES}


def _opening_shares(sums: _Sums) -> dict[str, float | None]:
    """Shares of all nats, by the number of first tokens as text."""
    if not sums.nats:
        return {str(first): None for first in OPENING}
    return {
        str(first): float(nats / sums.nats)
        for first, nats in zip(OPENING, sums.opening, strict=True)
    }


def _histogram(sums: _Sums, tokens: int) -> list[dict[str, float]]:
    """Shares of the tokens and of the nats in each of `BINS`, by the lower end of the bin in nats.

    Args:
        tokens: of all records.
    """
    bins = []
    for low, count, nats in zip(BINS, sums.bin_tokens, sums.bin_nats, strict=True):
        bins.append(
            {
                "from": low,
                "tokens": float(count / max(tokens, 1)),
                "nats": float(nats / sums.nats) if sums.nats else 0.0,
            }
        )
    return bins


def _verdict(informative: float | None, uniform_rows: float) -> str:
    """Whether weighting by b_t can help, in a sentence.

    Args:
        informative: mean effective t0 / T, None where no row has mass.
        uniform_rows: share of rows that are weighted uniformly.
    """
    if informative is None or uniform_rows > DEGENERATE_ROWS:
        return (
            f"no: {uniform_rows:.0%} of the rows have b_t close to 0, so the model predicts "
            "their y almost surely; perhaps it is not entangled on this data, and there is no "
            "strategy to find"
        )
    if informative > DEGENERATE_FLAT:
        return (
            f"hardly: effective t0 / T is {informative:.2f}, the weighted average nearly equals "
            "the uniform one"
        )
    degree = "a little" if informative > 1 / LITTLE else "yes"
    return (
        f"{degree}: effective t0 / T is {informative:.2f}, so the posterior's gradient grows "
        f"{1 / informative:.1f} times; that helps training to use z, and the meaning of z "
        "depends on the warm start"
    )


def _diagnosis(config: TrainConfig, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What `train` reports after these steps about weights and z, and statistics of the posterior
    over the last steps.

    `last` holds the newest value of each figure: not every step logs all of them.
    """
    from twcli.training.diagnostics import Watch, pooled_information

    watch = Watch(len(metrics), config.resolved_latents, config.uses_weights)
    for m in metrics:
        watch.see(m)
    information, usage = pooled_information(watch.recent) if metrics else (None, None)
    return {
        "last": watch.latest or None,
        "conditions": watch.standing(),
        "recent": {"steps": len(watch.recent), "mutual_information": information, "usage": usage},
    }


def _inspect_runs(folder: RunFolder, verify: bool) -> dict[str, Any]:
    """As `inspect`, of a folder of runs."""
    runs = {run.path.name: _inspect_run(run, verify) for run in folder.several()}
    problems = None
    if verify:
        problems = [problem for found in runs.values() for problem in found["problems"]]
    return {"kind": "runs", "path": str(folder.path), "runs": runs, "problems": problems}


def _inspect_run(run: RunFolder, verify: bool) -> dict[str, Any]:
    """As `inspect`, of a run folder: its verdict, its settings, how far it is, what its diagnostics
    say and, with `verify`, what is damaged.
    """
    config = run.read_config()
    problems = run.problems() if verify else None
    metrics = [] if problems else run.read_metrics()
    verdict = run.read_verdict() if run.done else None
    if verdict is not None and not verdict["advice"]:
        verdict["advice"] = evaluation_of(str(run.path))
    return {
        "kind": "run",
        "path": str(run.path),
        "done": run.done,
        "verdict": verdict,
        "steps": len(metrics),
        **_diagnosis(config, metrics),
        "settings": config.to_mapping(),
        "changed": config.changed(),
        "page": str(run.report) if run.report.exists() else None,
        "problems": problems,
    }
