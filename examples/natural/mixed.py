"""Prompts of three kinds (sums, advice, times of day), answered in three general styles."""

import random

from . import advice, schedule, sums
from .mixed_words import CASUAL, FORMAL, TUTOR
from .text import best, expand, hits

STRATEGIES: tuple[str, ...] = ("formal", "casual", "tutor")

KINDS = {"sums": sums, "advice": advice, "schedule": schedule}
POOLS = {"formal": FORMAL, "casual": CASUAL, "tutor": TUTOR}
FORMAL_CUES = (
    r"\b(accordingly|consequently|therefore|thus|hence|hereby|thereafter|subsequently|(?:sh|"
    r"w)ould one|must be|attention|moreover|"
    r"furthermore|additionally|in addition|amounts|obtained|yield(s|ing)|one (is|should|may|"
    r"computes|calculates|proceeds)|advis(ed|able)|recommend(ed)?|prudent|essential|appropriate|"
    r"necessary|sufficient|inquiry|in accordance|according to|upon|regard|please (note|be)|"
    r"(it|that) (may|can|should) be|demonstrates|evaluation|procedure|consideration|stated|"
    r"persons|require[ds]?|requested|namely|shall)\b"
)
CASUAL_CUES = (
    r"\b(yeah|yep|hey|oh|hmm|haha?|ugh|okay|ok|dude|pal|cheers|gonna|wanna|just|easy(?! to)|super|"
    r"pretty|"
    r"chill|stuff|folks|guess|honestly|sure thing|no (worries|sweat|big deal|stress|idea)|"
    r"big deal|good to go|like a charm)\b|\b(that|it|there|you|i|let|is)n?'(s|re|d|ve|ll|t|m)\b"
)
TUTOR_CUES = (
    r"\b(let us|together|we|you (can|will|are|know|see|get|found|find|discover|reach)|remember|"
    r"notice|think|try|practi[sc]ed?|well (done|tried|asked)|(great|good) (question|path)|bravo|"
    r"excellent|wonderful|exactly|proud|keep going|do not worry|your (turn|answer|pencil|first)|"
    r"learns?|lesson|exercise|believe|can you|do you|step by step|check it|explain)\b|\?"
)


def make_prompt(rng: random.Random) -> tuple[str, dict]:
    """A prompt of a random kind and its slots."""
    kind = rng.choice(tuple(KINDS))
    x, slots = KINDS[kind].make_prompt(rng)
    return x, slots | {"kind": kind}


def write(strategy: str, slots: dict, rng: random.Random) -> str:
    """A completion in the style."""
    more: dict = {}
    if slots["kind"] == "sums":
        work = "{a} {op} {b} = {answer}".format(**slots)
        res = rng.choice(("{answer}", "{answer} {item}")).format(**slots)
        more = {"work": work, "res": res}
    elif slots["kind"] == "schedule":
        word = {"+": "plus", "-": "minus"}[slots["op"]]
        work = f"{slots['start']} {word} {slots['dur']} = {slots['answer']}"
        more = {"work": work, "res": slots["answer"]}
    else:
        more["t1"], more["t2"] = rng.sample([slots["t1"], slots["t2"], slots["t3"]], 2)
    return expand(rng.choice(POOLS[strategy][slots["kind"]]), slots | more, rng)


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """The style of y, and whether its answer is right where x asks for a number or a time."""
    scores = {
        "formal": hits(FORMAL_CUES, y),
        "casual": 1.1 * hits(CASUAL_CUES, y),
        "tutor": 0.9 * hits(TUTOR_CUES, y),
    }
    module = schedule if schedule.parse(x) else sums
    return best(scores, 0.9), module.judge(x, y)[1]
