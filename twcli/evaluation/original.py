"""What the model that a run started from says of the records: b_t, the points of the score, and
completions to compare with. And how the run compares with it.

Shapes: N records, K latents.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from twcli.config.phases import COMPLETE, PAGE, POSTERIOR, Phases
from twcli.data.encoded import Encoded
from twcli.data.long_rows import ERROR, TRUNCATE_LEFT
from twcli.discovery.probe import Probe, probe_of
from twcli.discovery.rows import ModelSource
from twcli.discovery.score import Predictability
from twcli.errors import UserError
from twcli.evaluation.completions import Texts, complete
from twcli.evaluation.evidence import SHOWN
from twcli.evaluation.inputs import EvalInputs
from twcli.evaluation.passes import Passes
from twcli.models import baseline, loading, runtime
from twcli.models.inputs import Inputs, open_inputs
from twcli.training.estimates import DECODED
from twcli.training.retention import Retention, judged_by_probe, retention

PAGE_SECONDS = 3.0


@dataclass(frozen=True)
class Original:
    """The original model's word on the records; all None where that model is gone.

    Attributes:
        baseline_flat: b_t of all records in nats, one after the other.
        probe: completions that the run is scored by; None too where no prompts have several.
        texts: K completions of each distinct prompt at temperature 1; None too without a judge.
    """

    baseline_flat: np.ndarray | None = None
    probe: Probe | None = None
    texts: Texts | None = None


def read_original(inputs: EvalInputs, phases: Phases) -> Original:
    """Scores, embeds and, where there is a judge, completes the records with the original model.

    Raises:
        UserError: the model at `--model` cannot be opened, or encodes the records differently.
    """
    opened = _open(inputs)
    if opened is None:
        return Original()
    opened.model.to(runtime.pick_device(inputs.config.device))
    varlen = baseline.why_not_varlen(opened.model, opened.encoder, opened.encoded) is None
    begin = time.monotonic()
    baseline_flat = _baseline(inputs, opened, varlen)
    _expect(inputs, opened.encoded, time.monotonic() - begin, phases)
    probe = _probe(inputs, opened, varlen)
    if inputs.judge is None:
        return Original(baseline_flat, probe)
    begin = time.monotonic()
    texts = _drawn(inputs, opened)
    # the run's are completed twice: greedily and at random
    phases.expect({COMPLETE: 2 * (time.monotonic() - begin)})
    return Original(baseline_flat, probe, texts)


def _open(inputs: EvalInputs) -> Inputs | None:
    """The original model and the records as it encodes them; None where the run's is gone."""
    config = inputs.config
    trained = inputs.trained
    source = config.model or trained.model
    cut = TRUNCATE_LEFT in inputs.encoded.too_long
    try:
        opened = open_inputs(
            source,
            config.data,
            examples=inputs.examples,
            too_long=TRUNCATE_LEFT if cut else ERROR,
            max_length=inputs.max_length if cut else None,
            latent_tokens=trained.latent_tokens,
            template=inputs.run.template,
            precision=config.precision,
            attention=config.attention,
        )
    except UserError as error:
        if config.model:
            raise
        inputs.say(
            f"original model not found ({error}); score and likelihood.gain are left out, "
            "give --model to have them"
        )
        return None
    if not np.array_equal(opened.encoded.row_hash, inputs.encoded.row_hash):
        raise UserError(
            f"{source}: its tokenizer gives other token ids than the run's; "
            "give the model that the run started from"
        )
    return opened


def _baseline(inputs: EvalInputs, opened: Inputs, varlen: bool) -> np.ndarray:
    """b_t of all records in nats, one after the other."""
    encoded = opened.encoded
    with inputs.progress("tokens", int(encoded.lengths.sum())) as advance:
        return baseline.score_flat(
            opened.model,
            opened.encoder,
            encoded,
            np.arange(len(encoded)),
            batch_tokens=inputs.config.batch_tokens,
            varlen=varlen,
            progress=advance,
        )


def _latents(inputs: EvalInputs) -> int:
    """K."""
    return int(inputs.trained.latents or 1)


def _expect(inputs: EvalInputs, encoded: Encoded, seconds: float, phases: Phases) -> None:
    """Foretells the later phases from the seconds that scoring the records took."""
    K = _latents(inputs)
    longest = int(encoded.target_lengths.max())
    shown_tokens = SHOWN * K * longest
    share_of_scoring = shown_tokens * DECODED / int(encoded.lengths.sum())
    phases.expect(
        {
            POSTERIOR: (K + 1) * seconds,
            COMPLETE: share_of_scoring * seconds,
            PAGE: PAGE_SECONDS,
        }
    )


def _probe(inputs: EvalInputs, opened: Inputs, varlen: bool) -> Probe | None:
    """Completions that the run is scored by, as its training saw its naming."""
    config = inputs.config
    naming = inputs.run.read_naming()
    if "proportions" in naming:
        shares = np.asarray(naming["proportions"], float)
    else:
        shares = None
    features = ModelSource(
        opened.model, opened.encoder, opened.encoded, config.batch_tokens, varlen
    )
    return probe_of(
        features,
        opened.encoded,
        # Runs of older versions took distinct completions of a prompt for distinct strategies.
        distinct=bool(naming.get("one_string", True)),
        seed=config.seed,
        proportions=shares,
        progress=inputs.progress,
    )


def _drawn(inputs: EvalInputs, opened: Inputs) -> Texts:
    """K completions of each distinct prompt at temperature 1."""
    _, texts = complete(
        inputs,
        opened.model,
        opened.encoder,
        opened.encoded,
        loading.context_length(opened.model, inputs.config.max_length),
        [None] * _latents(inputs),
        temperature=1.0,
    )
    return texts


@dataclass(frozen=True)
class Compared:
    """The run against the model that it started from; all None where that is gone.

    Attributes:
        frozen_nll: (N,) NLL of the records under the original model, in nats.
        retained: what became of each latent's completions.
        predictability: what the score is made of; None too without a probe.
    """

    frozen_nll: np.ndarray | None = None
    retained: list[Retention] | None = None
    predictability: Predictability | None = None


def compare_with_original(
    passes: Passes, original: Original, encoded: Encoded, seed: int
) -> Compared:
    """What training kept of the original model, record by record and for the score."""
    if original.baseline_flat is None:
        return Compared()
    frozen_N = np.add.reduceat(
        original.baseline_flat, encoded.target_offsets[:-1], dtype=np.float64
    )
    marginal_N = passes.marginal_nll
    generator_NK = passes.generator_nll
    retained = retention(passes.posterior.argmax(1), frozen_N, marginal_N, generator_NK)
    probe = original.probe
    if probe is None:
        return Compared(frozen_N, retained)
    soft = passes.responsibilities[probe.rows]
    likelihoods = frozen_N[probe.rows], marginal_N[probe.rows]
    generator = generator_NK[probe.rows]
    found = retention(soft.argmax(1), *likelihoods, generator)
    predictability = judged_by_probe(probe, soft, generator, *likelihoods, seed, found)
    return Compared(frozen_N, retained, predictability)
