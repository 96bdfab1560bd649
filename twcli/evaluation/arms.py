"""`sampling` of `twcli eval --samples N`: the frozen model, and the run in three ways to divide the
same number of samples, on the same prompts.

    frozen         the frozen model drawn N times, at the best of a few temperatures
    even           N divided evenly over the latents (round robin)
    proportional   N divided over the latents in proportion to p(z|x), the likeliest first
    router         N latents drawn from p(z|x), one completion each

Shapes: P prompts, K latents, N samples a prompt, D draws, A arms, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from twcli.config.evaluate import EvalConfig
from twcli.config.train import TrainConfig
from twcli.data.batches import collate, forward_batches
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.data.example import Example
from twcli.discovery.features import STATES, embed_rows
from twcli.errors import UserError
from twcli.evaluation import diversity, sampling
from twcli.evaluation.judges import Judge, Verdict
from twcli.evaluation.samples import Sampling, Writer, draw_all, drawn_latents
from twcli.evaluation.sampling import Draws
from twcli.kernels.packing import PLAIN
from twcli.models import runtime
from twcli.models.latents import LatentModel
from twcli.storage.run_folder import RunFolder
from twcli.training import loss

FROZEN, EVEN, PROPORTIONAL, ROUTER = "frozen", "even", "proportional", "router"
COMPARED = (EVEN, PROPORTIONAL, ROUTER)  # with the frozen model
MOST_PROMPTS = 200  # of which diversity and transmission are computed
VERDICTS = "judging the samples"


@dataclass(frozen=True)
class Arm:
    """The completions of one arm.

    Attributes:
        texts: a list for each prompt, of latent 0 first where strata are latents.
        strata: of each completion, as `sampling.Draws`; `order` likewise.
        samples: a list for each prompt of the N that the arm draws, in its order.
        latents: of each completion, -1 for the frozen model.
    """

    texts: list[list[str]]
    strata: list[list[int]]
    samples: list[list[str]]
    latents: list[list[int]]
    order: np.ndarray | None = None


def arms_of(lines: Sequence[dict[str, Any]], samples: int, seed: int) -> dict[str, Arm]:
    """The arms, those of the frozen model by temperature as `frozen 0.7`, from what was drawn."""
    arms: dict[str, Arm] = {}
    for temperature in lines[0]["frozen"]:
        texts = [line["frozen"][temperature] for line in lines]
        nothing = [[0] * samples for _ in lines]
        unknown = [[-1] * samples for _ in lines]
        arms[f"{FROZEN} {temperature}"] = Arm(texts, nothing, texts, unknown)
    router = np.asarray([line["router"] for line in lines])
    P, K = router.shape
    each = -(-samples // K)
    proportional = sampling.proportional_order(router, samples)
    drawn = np.stack([drawn_latents(seed, row, p, samples) for row, p in enumerate(router)])
    for name, order in (
        (EVEN, np.tile(np.arange(samples) % K, (P, 1))),
        (PROPORTIONAL, proportional),
        (ROUTER, drawn),
    ):
        # the n-th sample of a latent is the n-th of its completions in every arm
        before = [[(o[:n] == o[n]).sum() for n in range(samples)] for o in order]
        ordered = [
            [line["latents"][k][n] for k, n in zip(o.tolist(), b, strict=True)]
            for line, o, b in zip(lines, order, before, strict=True)
        ]
        if name == EVEN:  # some of the latents get one more: all choices count
            texts = [list(chain(*(ys[:each] for ys in line["latents"]))) for line in lines]
            latents = [[k for k in range(K) for _ in range(each)] for _ in lines]
            arms[name] = Arm(texts, latents, ordered, latents)
        elif name == PROPORTIONAL:
            arms[name] = Arm(ordered, order.tolist(), ordered, order.tolist(), order)
        else:
            arms[name] = Arm(ordered, [[0] * samples for _ in lines], ordered, order.tolist())
    return arms


def judged(
    arms: dict[str, Arm],
    xs: Sequence[str],
    judge: Judge | None,
    progress: Callable[[str, int], Any],
) -> tuple[dict[str, Draws], dict[str, Draws], list[str]]:
    """Per arm all draws, and those with a verdict; and the strategies that the judge named."""
    pairs = {
        name: [(x, y) for x, ys in zip(xs, arm.texts, strict=True) for y in ys]
        for name, arm in arms.items()
    }
    whole = list(chain(*pairs.values()))
    verdicts: list[Verdict | None] = [None] * len(whole)
    if judge:
        with progress(VERDICTS, len(set(whole))) as advance:
            verdicts = judge.verdicts(whole, advance)
    names = sorted({verdict[0] for verdict in verdicts if verdict and verdict[0] is not None})
    numbers = {name: number for number, name in enumerate(names)}
    texts = {pair: number for number, pair in enumerate(dict.fromkeys(whole))}
    every, known, start = {}, {}, 0
    for name, arm in arms.items():
        those = verdicts[start : start + len(pairs[name])]
        start += len(those)
        there = np.array([verdict is not None for verdict in those], bool)
        draws = Draws(
            prompts=np.repeat(np.arange(len(xs)), [len(ys) for ys in arm.texts]),
            strata=np.asarray(list(chain(*arm.strata)), np.int64),
            correct=np.array(
                [np.nan if v is None or v[1] is None else float(v[1]) for v in those], float
            ),
            strategies=np.array(
                [-1 if v is None or v[0] is None else numbers[v[0]] for v in those], np.int64
            ),
            texts=np.array([texts[pair] for pair in pairs[name]], np.int64),
            order=arm.order,
        )
        every[name] = draws
        known[name] = Draws(
            draws.prompts[there],
            draws.strata[there],
            draws.correct[there],
            draws.strategies[there],
            draws.texts[there],
            arm.order,
        )
    return every, known, names


def powers(samples: int) -> np.ndarray:
    """(k,) int: 1, 2, 4 .. and N."""
    return np.unique([min(2**n, samples) for n in range(samples.bit_length() + 1)])


def figures_of(
    every: dict[str, Draws],
    known: dict[str, Draws],
    names: Sequence[str],
    *,
    prompts: int,
    latents: int,
    samples: int,
    temperature: float,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What `sampling` holds of the arms, from their draws; null where a judge would be needed.

    Prompts with too few verdicts in one arm are left out of all.
    """
    ks, all_ks = powers(samples), np.arange(1, samples + 1)
    strata = {name: latents if name in (EVEN, PROPORTIONAL) else 1 for name in every}
    values: dict[str, dict[str, np.ndarray]] = {}
    if any(np.isfinite(draws.correct).any() for draws in known.values()):
        values["pass_at_k"] = {
            name: sampling.success(draws, prompts, strata[name], all_ks)
            for name, draws in known.items()
        }
    if names:
        values["strategies_at_k"] = {
            name: sampling.kinds(draws, draws.strategies, prompts, strata[name], ks)
            for name, draws in known.items()
        }
    values["distinct_at_k"] = {
        name: sampling.kinds(draws, draws.texts, prompts, strata[name], ks) / ks
        for name, draws in every.items()
    }
    for per_arm in values.values():
        gaps = np.isnan(np.stack(list(per_arm.values()))).any(0)
        for table in per_arm.values():
            table[gaps] = np.nan
    best = _best_frozen(values, ks, temperature)
    arms = {FROZEN: best} if best else {}
    arms |= {name: name for name in COMPARED}
    result: dict[str, Any] = {"k": ks.tolist(), "arms": {}, "difference": {}, "samples_saved": {}}
    columns = {(key, name): per_arm[arms[name]] for key, per_arm in values.items() for name in arms}
    means = {place: sampling.mean(table) for place, table in columns.items()}
    drawn = sampling.resample(np.concatenate(list(columns.values()), axis=1), bootstrap, seed)
    widths = np.cumsum([table.shape[1] for table in columns.values()])[:-1]
    resampled = dict(zip(columns, np.split(drawn, widths, axis=1), strict=True))
    for name in arms:
        result["arms"][name] = {}
        for key in ("pass_at_k", "strategies_at_k", "distinct_at_k"):
            place = (key, name)
            at = ks - 1 if key == "pass_at_k" else np.arange(len(ks))
            _put(result["arms"][name], key, means.get(place), resampled.get(place), at)
            if best and name != FROZEN:
                reference = (key, FROZEN)
                known_here = place in means
                _put(
                    result["difference"].setdefault(name, {}),
                    key,
                    means[place] - means[reference] if known_here else None,
                    resampled[place] - resampled[reference] if known_here else None,
                    at,
                )
    if best:
        result["arms"][FROZEN]["temperature"] = float(best.split()[1])
        result["temperatures"] = {
            name.split()[1]: _numbers(
                sampling.mean(values["pass_at_k"][name])[ks - 1] if "pass_at_k" in values else None
            )
            for name in every
            if name.startswith(f"{FROZEN} ")
        }
    if best and "pass_at_k" in values:
        for name in COMPARED:
            result["samples_saved"][name] = _saved(
                means["pass_at_k", FROZEN],
                means["pass_at_k", name],
                resampled["pass_at_k", FROZEN],
                resampled["pass_at_k", name],
            )
    result["judged_prompts"] = (
        int(np.isfinite(columns["pass_at_k", EVEN]).all(1).sum()) if "pass_at_k" in values else None
    )
    return result


def _best_frozen(
    values: dict[str, dict[str, np.ndarray]], ks: np.ndarray, temperature: float
) -> str | None:
    """The arm of the frozen model with the largest mean over k = 1, 2, 4 .. of pass@k, or of the
    strategies covered where no answer is judged; else the one at the run's temperature.
    """
    frozen = [name for name in values["distinct_at_k"] if name.startswith(f"{FROZEN} ")]
    if not frozen:
        return None
    for key, at in (("pass_at_k", ks - 1), ("strategies_at_k", np.arange(len(ks)))):
        if key in values:
            score = {name: np.nan_to_num(sampling.mean(values[key][name])[at]) for name in frozen}
            return max(frozen, key=lambda name: float(score[name].mean()))
    return min(frozen, key=lambda name: abs(float(name.split()[1]) - temperature))


def _put(
    result: dict[str, Any],
    key: str,
    mean: np.ndarray | None,
    drawn: np.ndarray | None,
    at: np.ndarray,
) -> None:
    result[key] = _numbers(None if mean is None else mean[at])
    result[f"{key}_ci"] = (
        None if drawn is None else [sampling.interval(drawn[:, column]) for column in at]
    )


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    if values is None:
        return None
    return [float(value) if np.isfinite(value) else None for value in values]


def _saved(
    reference: np.ndarray, curve: np.ndarray, reference_B: np.ndarray, curve_B: np.ndarray
) -> dict[str, Any]:
    if not (np.isfinite(reference).all() and np.isfinite(curve).all()):
        return {"pass": None, "frozen_samples": None, "samples": None, "ratio": None} | {
            "ratio_ci": None
        }
    target, frozen_samples, samples = sampling.samples_saved(reference, curve)
    _, frozen_B, samples_B = sampling.samples_saved(reference_B, curve_B)
    return {
        "pass": float(target),
        "frozen_samples": float(frozen_samples),
        "samples": float(samples),
        "ratio": float(frozen_samples / samples),
        "ratio_ci": sampling.interval(frozen_B / samples_B),
    }


def prediction(
    frozen: Draws,
    names: Sequence[str],
    *,
    reference: Draws,
    prompts: int,
    latents: int,
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """What the strategies' frequencies and accuracies in the frozen model's samples predict for a
    run in which each has a latent; None where that is not known.

    Args:
        frozen: samples at the run's temperature, at which a latent makes as many mistakes.
        reference: those at the frozen model's best temperature, with which the run is compared.
    """
    mixture = sampling.fit_mixture(frozen, prompts, seed)
    if mixture is None:
        return None
    ks = np.arange(1, samples + 1)
    known = np.isfinite(frozen.correct)
    of_each = [(frozen.strategies == number) & known for number in range(len(names))]
    drawn = sampling.mean(sampling.success(reference, prompts, 1, ks))
    result: dict[str, Any] = {
        "classes": len(mixture.weights),
        "strategies": {
            name: {
                "frequency": float(those.sum() / known.sum()),
                "accuracy": float(frozen.correct[those].mean()) if those.any() else None,
            }
            for name, those in zip(names, of_each, strict=True)
        },
        "pass_at_k": {FROZEN: drawn[powers(samples) - 1].tolist()},
        "ratio": {},
    }
    for name, by_frequency in ((EVEN, False), (PROPORTIONAL, True)):
        curve = mixture.divided(samples, latents, by_frequency=by_frequency)
        _, drawn_needed, needed = sampling.samples_saved(drawn, curve)
        result["pass_at_k"][name] = curve[powers(samples) - 1].tolist()
        result["ratio"][name] = float(drawn_needed / needed)
    return result


def attributed(strategies: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """(D,) the strategy of each draw; one that the judge named none for, as of a trace with a
    mistake, has the commonest strategy of the draws in which the same latent is read.

    Args:
        strategies: (D,) int, -1 where the judge named none; `latents` likewise, as read.
    """
    known = (strategies >= 0) & (latents >= 0)
    if not known.any():
        return strategies
    counts = np.zeros((latents.max() + 1, strategies.max() + 1), np.int64)
    np.add.at(counts, (latents[known], strategies[known]), 1)
    commonest = np.where(counts.any(1), counts.argmax(1), -1)
    # a latent of -1, which was not read, takes the last entry
    of_latent = np.append(commonest, -1)
    return np.where(strategies >= 0, strategies, of_latent[latents])


# With models


def compare(
    config: EvalConfig,
    *,
    judge: Judge | None,
    model: LatentModel,
    encoder: ExampleEncoder,
    trained: TrainConfig,
    examples: Sequence[Example],
    encoded: Encoded,
    writer: Writer,
    longest: int,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> dict[str, Any]:
    """`sampling` of `eval --json`.

    Args:
        writer: draws from the run.
        longest: most tokens of a completion.

    Raises:
        UserError, WorkFailed, Interrupted: as `draw_all`; or no sample could be judged.
    """
    assert config.samples is not None
    _, first, prompt_N = np.unique(encoded.prompt_index, return_index=True, return_inverse=True)
    xs = [examples[row].x for row in first]
    references: list[list[str]] = [[] for _ in xs]
    for prompt, example in zip(prompt_N.reshape(-1).tolist(), examples, strict=True):
        references[prompt].append(example.y)
    run = RunFolder(config.run)
    frozen = _frozen_writer(config, trained, run, say)
    limit = runtime.context_length(model.backbone, config.max_length)
    latent_ids = model.latent_ids_KP.tolist()
    drawing = Sampling(config, writer, frozen, [examples[row] for row in first], longest)
    lines = draw_all(drawing, run.samples, say, progress)
    arms = arms_of(lines, config.samples, config.seed)
    every, known, names = judged(arms, xs, judge, progress)
    result: dict[str, Any] = {
        "prompts": len(xs),
        "samples": config.samples,
        "temperature": config.temperature,
    }
    result |= figures_of(
        every,
        known,
        names,
        prompts=len(xs),
        latents=len(latent_ids),
        samples=config.samples,
        temperature=config.temperature,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    shown = {name: arms[name] for name in COMPARED}
    if frozen:
        best = f"{FROZEN} {result['arms'][FROZEN]['temperature']:g}"
        shown = {FROZEN: arms[best]} | shown
        same = f"{FROZEN} {config.temperature:g}"
        result["prediction"] = _predicted(
            every[same], every[best], names, arms[same], xs, model, encoder, config, limit
        )
        for name, saved in result["samples_saved"].items():
            ratio = (result["prediction"] or {"ratio": {}})["ratio"]
            saved["predicted"] = ratio.get(name)
    some = np.unique(np.linspace(0, len(xs) - 1, min(MOST_PROMPTS, len(xs))).astype(int)).tolist()
    for name, figures in _diversity(shown, xs, references, some, frozen, config, say).items():
        result["arms"][name]["diversity"] = figures
    result["transmission"] = _transmission(arms[EVEN], xs, some, model, encoder, config, limit)
    return result


def _frozen_writer(
    config: EvalConfig, trained: TrainConfig, run: RunFolder, say: Callable[[str], None]
) -> Writer | None:
    try:
        frozen, encoder = runtime.load_frozen(
            config.model or trained.model,
            precision=config.precision,
            attention=config.attention,
            template=run.template,
        )
    except UserError as error:
        if config.model:
            raise
        say(f"original model not found ({error}); its arm is left out, give --model to have it")
        return None
    frozen.to(runtime.pick_device(config.device))
    return Writer(frozen, encoder, [], runtime.context_length(frozen, config.max_length))


def encodable(
    encoder: ExampleEncoder, pairs: Sequence[tuple[str, str]], max_length: int
) -> tuple[Encoded | None, np.ndarray]:
    """The (x, y) that can be read as records, and their numbers: a completion may be empty, spell a
    tag, or fill the context.
    """
    kept: list[int] = []

    def collect(numbers: list[int]) -> None:
        try:
            encoder.encode(
                [Example(*pairs[number]) for number in numbers], max_length=max_length, source=""
            )
            kept.extend(numbers)
        except UserError:
            half = len(numbers) // 2
            if half:
                collect(numbers[:half])
                collect(numbers[half:])

    numbers = [number for number, (_, y) in enumerate(pairs) if y]
    if numbers:
        collect(numbers)
    if not kept:
        return None, np.empty(0, np.int64)
    those = [Example(*pairs[number]) for number in kept]
    return encoder.encode(those, max_length=max_length, source=""), np.asarray(kept)


@torch.no_grad()
def read_back(
    model: LatentModel, encoder: ExampleEncoder, encoded: Encoded, batch_tokens: int
) -> np.ndarray:
    """(D,) the posterior's likeliest latent of each row; by Bayes' rule from the generator
    where the run has no posterior of its own, with all latents alike likely beforehand.
    """
    device = next(model.parameters()).device
    found = np.empty(len(encoded), np.int64)
    exact = model.posterior == "exact"
    for rows in forward_batches(
        encoded,
        np.arange(len(encoded)),
        batch_tokens=batch_tokens,
        branches=model.latents if exact else 1,
        shared=model.execution != PLAIN,
    ):
        batch = collate(rows, encoded, encoder, None).to(device)
        if exact:
            logits, _ = loss.responsibilities(*model.score_branches(batch))
        else:
            logits = model.posterior_logits(batch)
        found[rows] = logits.argmax(-1).cpu().numpy()
    return found


def _predicted(
    draws: Draws,
    reference: Draws,
    names: Sequence[str],
    arm: Arm,
    xs: Sequence[str],
    model: LatentModel,
    encoder: ExampleEncoder,
    config: EvalConfig,
    limit: int,
) -> dict[str, Any] | None:
    """`prediction` by the judge's strategies, or by the latents that the posterior reads in the
    frozen model's samples.
    """
    assert config.samples is not None
    if not np.isfinite(draws.correct).any():
        return None
    by = "strategies" if names else "latents"
    pairs = [(x, y) for x, ys in zip(xs, arm.texts, strict=True) for y in ys]
    read = _latents_of(pairs, model, encoder, config, limit)
    if names:
        draws = replace(draws, strategies=attributed(draws.strategies, read))
    else:
        names = [f"z{k}" for k in range(model.latents)]
        draws = replace(draws, strategies=read)
    found = prediction(
        draws,
        names,
        reference=reference,
        prompts=len(xs),
        latents=model.latents,
        samples=config.samples,
        seed=config.seed,
    )
    return found and {"by": by} | found


def _latents_of(
    pairs: Sequence[tuple[str, str]],
    model: LatentModel,
    encoder: ExampleEncoder,
    config: EvalConfig,
    limit: int,
) -> np.ndarray:
    """(D,) the latent read in each (x, y), -1 where it cannot be read as a record."""
    distinct = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    read = np.full(len(distinct), -1)
    encoded, kept = encodable(encoder, list(distinct), limit)
    if encoded is not None:
        read[kept] = read_back(model, encoder, encoded, config.batch_tokens)
    return read[[distinct[pair] for pair in pairs]]


def _transmission(
    arm: Arm,
    xs: Sequence[str],
    some: Sequence[int],
    model: LatentModel,
    encoder: ExampleEncoder,
    config: EvalConfig,
    limit: int,
) -> dict[str, Any]:
    """How well the posterior reads the latent of a completion back: one confusion matrix, a row for
    each latent that was asked for; their mutual information in nats is at most log K.
    """
    pairs = [(xs[p], y) for p in some for y in arm.texts[p]]
    asked = np.asarray([z for p in some for z in arm.latents[p]])
    prompts = np.repeat(np.arange(len(some)), [len(arm.texts[p]) for p in some])
    read = _latents_of(pairs, model, encoder, config, limit)
    there = read >= 0
    K = model.latents
    table = np.bincount(asked[there] * K + read[there], minlength=K * K).reshape(K, K)
    accuracy = None
    if there.any():
        hits, counts = (
            np.bincount(prompts, weights, minlength=len(some)).astype(float)
            for weights in (there & (asked == read), there)
        )
        # every prompt has as many completions, but for those that cannot be read
        share = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)[:, None]
        accuracy = float(sampling.mean(share)[0])
        ci = sampling.interval(sampling.resample(share, config.bootstrap, config.seed)[:, 0])
    return {
        "confusion": table.tolist(),
        "unread": int((~there).sum()),
        "accuracy": accuracy,
        "accuracy_ci": None if accuracy is None else ci,
        "information": diversity.information(table),
    }


def _diversity(
    arms: dict[str, Arm],
    xs: Sequence[str],
    references: Sequence[Sequence[str]],
    some: Sequence[int],
    frozen: Writer | None,
    config: EvalConfig,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Figures without a judge, each a mean over prompts, but for BLEU."""
    features = _embedded(arms, xs, some, frozen, config) if frozen else {}
    result: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        samples = [arm.samples[p] for p in some]
        figures: dict[str, Any] = {
            f"distinct_{n}": _mean([diversity.distinct_n(texts, n) for texts in samples])
            for n in diversity.ORDERS
        }
        figures["vendi"] = None
        if features:
            scores = []
            for p, texts in zip(some, samples, strict=True):
                read = [features[xs[p], y] for y in texts if (xs[p], y) in features]
                scores.append(diversity.vendi_score(np.stack(read)) if read else np.nan)
            figures["vendi"] = _mean(scores)
        figures |= {"self_bleu": None, "reference_bleu": None, "reference_bleu_data": None}
        result[name] = figures
    try:
        for name, arm in arms.items():
            samples = [[y for y in arm.samples[p] if y] for p in some]
            result[name]["self_bleu"] = diversity.self_bleu(samples)
            both = diversity.reference_bleu(samples, [references[p] for p in some])
            if both:
                result[name]["reference_bleu"], result[name]["reference_bleu_data"] = both
    except UserError as error:  # the package is missing
        say(f"{error}; self_bleu and reference_bleu are left out")
    return result


def _embedded(
    arms: dict[str, Arm],
    xs: Sequence[str],
    some: Sequence[int],
    frozen: Writer,
    config: EvalConfig,
) -> dict[tuple[str, str], np.ndarray]:
    """(x, y) -> mean hidden state of y under the frozen model, minus the mean of all of them: what
    is common to all states would make any two alike.
    """
    pairs = list(
        dict.fromkeys((xs[p], y) for arm in arms.values() for p in some for y in arm.samples[p])
    )
    encoded, kept = encodable(frozen.encoder, pairs, frozen.max_length)
    if encoded is None:
        return {}
    states = embed_rows(
        frozen.model,
        frozen.encoder,
        encoded,
        np.arange(len(encoded)),
        batch_tokens=config.batch_tokens,
    ).kinds[STATES]
    centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    return {pairs[number]: row for number, row in zip(kept.tolist(), centred, strict=True)}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
