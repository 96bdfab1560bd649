"""Did it work, how sure is that, and what now: one sentence before all figures of `twcli eval`.

A run works if asking for a latent gets that latent's strategy. A judge shows it (generation),
labels show it of the posterior alone, and without either the score says what to expect. Each figure
is held against chance by its 95 % interval, so that few records give no firm verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twcli.pages.text import share as percent

WORKS = 0.9  # share of the way from chance to 1 from which on a run works
CHANCE = 0.1  # of that way, below which it is at chance
HALF = 0.5  # of a latent's drawn completions
INFORMED = 0.1  # of log K: what I(z; y) at least is where a posterior knows anything

Kind = Literal["works", "partly", "failed", "unknown"]
OPENINGS: dict[Kind, str] = {
    "works": "Works",
    "partly": "Works in part",
    "failed": "Failed",
    "unknown": "Not decided",
}


@dataclass(frozen=True)
class Verdict:
    """What a reader sees first.

    Attributes:
        sentence: what happened, with the figure and its chance level.
        advice: what to do next.
    """

    kind: Kind
    sentence: str
    advice: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"kind": self.kind, "sentence": self.sentence, "advice": self.advice}


def evaluation_of(run: str) -> str:
    """What to do after a training, in a sentence.

    Args:
        run: path of the run folder, where it is now.
    """
    return f"Next: twcli eval --run {run} --data TEST.jsonl"


def verdict_of(result: dict[str, Any]) -> Verdict:
    """The verdict on the figures of `metrics.summarise`."""
    alignment = result["alignment"]
    K = result["latents"]
    # Each latent is asked for equally often: if z has no effect, at most one in K is its strategy.
    chance = 1 / K
    if (share := alignment["generation_one_to_one"]) is not None:
        kind = _kind(share, alignment["generation_one_to_one_ci"], chance)
        said = f"asking for a latent gets its strategy {percent(share)} of the time"
    elif (share := alignment["posterior_one_to_one"]) is not None:
        chance = max(
            alignment["majority"] or 0.0, chance
        )  # records are not of all strategies alike
        kind = _kind(share, alignment["posterior_one_to_one_ci"], chance)
        said = f"the posterior finds the strategy of {percent(share)} of the records"
    elif (share := result["score"]) is not None:
        kind = _kind(share, result["score_ci"], chance)
        said = f"asking for a latent is expected to get its strategy {percent(share)} of the time"
    else:
        share = None
        kind = _kind_of_information(result["posterior"], K)
        said = (
            f"I(z; y) is {result['posterior']['mutual_information']:.2f} of at most "
            f"{math.log(K):.2f} nats: what z tells about the completion; what it means is not known"
        )
    finer = kind != "works" and _finer(alignment, chance)
    if finer:
        kind = "works"
        said = _shared(alignment)
    elif share is not None:
        said += f" (chance {percent(chance)})"
    lost = [entry["latent"] for entry in result["retention"] or () if entry["below"]]
    worse = _worse(result["likelihood"])
    unsteady = [entry for entry in result["retention"] or () if _unsteady(entry)]
    if kind == "works" and (lost or worse or unsteady):
        kind = "partly"
    sentence = f"{OPENINGS[kind]}: {said}."
    if unsteady and kind == "partly":
        shares = ", ".join(f"z{entry['latent']} {percent(entry['obeyed'])}" for entry in unsteady)
        sentence += f" The share is of greedy completions; drawn at temperature 1: {shares}."
    if lost:
        sentence += f" Less likely than under the original model: {_names(lost)}."
    elif worse:
        sentence += " Its completions are less likely than under the original model."
    advice = _advice(kind, result, bool(lost) or worse)
    if finer and kind == "works":
        strategies = _strategies(alignment)
        advice = f"Use it; or train with --latents {strategies}, one for each strategy."
    return Verdict(kind, sentence, advice)


def verdict_of_score(
    score: float, latents: int, lost: Collection[int], at_most: float | None = None
) -> Verdict:
    """The verdict at the end of a training, where there is the score only.

    Args:
        lost: latents whose completions are less likely than under the frozen model.
        at_most: the score if the frozen model knows the records by heart (`finishing.Judged`).
    """
    kind = _kind(score, None, 1 / latents)
    highest = None
    if at_most is not None and kind == "partly":
        highest = _kind(at_most, None, 1 / latents)
    if lost:
        kind = "partly" if kind == "works" else kind
        highest = None
    opening = f"{OPENINGS[kind]}"
    if highest == "works":
        opening = "Works, at least in part"
    expected = percent(score)
    if at_most is not None and percent(at_most) != expected:
        expected = f"{percent(score)} to {percent(at_most)}"
    return Verdict(
        kind,
        f"{opening}: asking for a latent is expected to get its strategy {expected} of the "
        f"time (chance {percent(1 / latents)}; no labels are read).",
        "",
    )


def verdict_of_training(information: float, latents: int) -> Verdict:
    """The verdict at the end of a training of too few records for a score.

    Args:
        information: I(z; y) in nats, of the last steps.
    """
    most = math.log(latents)
    said = f"I(z; y) is {information:.2f} of at most {most:.2f} nats"
    if information < INFORMED * most:
        return Verdict(
            "failed", f"{OPENINGS['failed']}: z has no effect on the output: {said}.", ""
        )
    return Verdict(
        "unknown",
        f"{OPENINGS['unknown']}: {said}, and there are too few records to say what z means.",
        "",
    )


def _kind(share: float, interval: list[float] | None, chance: float) -> Kind:
    """What a share of right strategies says: it works, it is at chance, it lies between, or the
    interval is too wide to say.

    Args:
        share: from 0 to 1.
        interval: 95 %, None where there is none.
        chance: the share that guessing gets.
    """
    low, high = interval or (share, share)
    working = chance + WORKS * (1 - chance)
    by_chance = chance + CHANCE * (1 - chance)
    precise = high - low <= 0.1
    if low >= working or (share >= working and precise):
        return "works"
    if share <= by_chance or low <= chance:
        return "unknown" if high >= working else "failed"
    return "partly"


def _finer(alignment: dict[str, Any], chance: float) -> bool:
    """Whether latents are finer than the strategies that are known: two wordings of one may have a
    latent each. Every latent keeps to one strategy then, and every strategy has a latent that
    writes it. Where there is one strategy alone, every latent keeps to it whatever z does.

    Args:
        chance: the share that guessing gets, as `verdict_of` has it.
    """
    if not alignment.get("spare") or alignment["merged"]:
        return False
    strategies = _strategies(alignment)
    if strategies < 2:
        return False
    if alignment["generation_one_to_one"] is None:
        return _works(alignment, "posterior_many_to_one", chance)
    # latents that are asked for alike: of K, as many as there are strategies can be right
    most = strategies / len(alignment["mapping"])
    return (
        _works(alignment, "generation_one_to_one", 1 / strategies, most)
        and _works(alignment, "generation_many_to_one", chance)
        and _works(alignment, "coverage_mean", chance)
    )


def _works(alignment: dict[str, Any], key: str, chance: float, most: float = 1.0) -> bool:
    """Whether a figure says that a run works.

    Args:
        most: what the figure can be; it counts as a share of that.
    """
    share = alignment[key]
    if share is None:
        return False
    interval = alignment[f"{key}_ci"]
    if interval is not None:
        interval = [end / most for end in interval]
    return _kind(share / most, interval, chance) == "works"


def _strategies(alignment: dict[str, Any]) -> int:
    """How many strategies have a latent of their own."""
    return len(set(alignment["mapping"].values()) - {None})


def _shared(alignment: dict[str, Any]) -> str:
    """What latents do that are finer than strategies, and which of them have the same one."""
    share = alignment["generation_many_to_one"]
    if share is None:
        share = alignment["posterior_many_to_one"]
    latents: dict[str, list[int]] = {}
    for part in (alignment["mapping"], alignment["spare"]):
        for k, name in part.items():
            if name is not None:
                latents.setdefault(name, []).append(int(k))
    shared = [f"{_and(sorted(ks))} are {name}" for name, ks in latents.items() if len(ks) > 1]
    return (
        f"a latent keeps to one strategy {percent(share)} of the time, and every strategy has a "
        f"latent; {', '.join(shared)}"
    )


def _kind_of_information(posterior: dict[str, Any], latents: int) -> Kind:
    """The same without labels: only a collapse is recognised, by I(z; y) in nats."""
    high = posterior["mutual_information"]
    if posterior["mutual_information_ci"]:
        _, high = posterior["mutual_information_ci"]
    if high < INFORMED * math.log(latents):
        return "failed"
    return "unknown"


def _unsteady(entry: dict[str, Any]) -> bool:
    """Whether a latent's strategy is in less than half of what is drawn under it, beyond doubt: the
    likeliest completion may obey while most others do not.
    """
    interval = entry.get("obeyed_ci")  # None without a judge
    return interval is not None and interval[1] < HALF


def _worse(likelihood: dict[str, Any]) -> bool:
    """Whether the likelihood fell by more than its interval."""
    interval = likelihood["gain_ci"]
    return interval is not None and interval[1] < 0 and likelihood["gain"] < -0.1


def _names(latents: list[int]) -> str:
    """Latents as a reader finds them on the page, z0 and on, separated by commas."""
    names = [f"z{k}" for k in latents]
    return ", ".join(names)


def _and(latents: list[int]) -> str:
    """Two latents or more, in words."""
    *first, last = latents
    return f"{_names(first)} and z{last}"


def _advice(kind: Kind, result: dict[str, Any], worse: bool) -> str:
    """What to do next, in a sentence."""
    merged = result["alignment"]["merged"]
    unused = result["posterior"]["unused"]
    if kind == "works":
        return "Use it: twcli sample --latent K, or twcli export."
    if kind == "unknown":
        return "Give more held-out records, or --judge, which shows what each latent writes."
    if kind == "failed":
        return (
            "Look at the names first: twcli discover. If they are what you mean, train for more "
            "steps; if not, edit them or change --latents."
        )
    if merged:
        name, latent = next(iter(merged.items()))
        return f"{name} has no latent of its own, z{latent} takes most of it: try more --latents."
    if unused:
        return f"Not used: {_names(unused)}; fewer --latents may be enough."
    if worse:
        return "Train for more steps, or with a smaller --lr."
    return "Train for more steps; twcli discover shows which latents are alike."


def gains_disagree(entry: Mapping[str, Any]) -> bool:
    """Whether choice and writing differ: one of the two gains of a latent is below 0, or beyond
    doubt so, and the other is not.

    Args:
        entry: of `Retention.as_dict`; gains in nats, intervals None where there is none.
    """
    chosen_lost = entry["gain"] < 0
    written_lost = entry["written_gain"] < 0
    chosen_surely = _all_below_zero(entry["gain_ci"])
    written_surely = _all_below_zero(entry["written_gain_ci"])
    return chosen_lost != written_lost or chosen_surely != written_surely


def _all_below_zero(interval: Sequence[float] | None) -> bool:
    """Whether there is an interval and its upper end is below 0."""
    if interval is None:
        return False
    high = interval[1]
    return high < 0
