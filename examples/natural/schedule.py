"""Questions about times of day with one exact answer, worked out in three ways."""

import random
import re

from .schedule_words import HOURS_FIRST, MINUTES, PROMPTS, VIA_FULL_HOUR
from .text import best, expand, hits, numbers, person

STRATEGIES: tuple[str, ...] = ("minutes", "hours_first", "via_full_hour")

POOLS = {"minutes": MINUTES, "hours_first": HOURS_FIRST, "via_full_hour": VIA_FULL_HOUR}
BACK = r"\b(must it leave|should \w+ (leave|begin)|did \w+ (begin|leave))\b"
LENGTH = re.compile(r"(\d+) ?h(?:ours?)?,?(?: and)? (\d+) ?min")
CLOCK = re.compile(r"\b(\d{1,2}):(\d{2})\b")


def clock(minutes: int) -> str:
    """The time of day so many minutes after midnight, such as `9:05`."""
    return f"{minutes // 60}:{minutes % 60:02d}"


def hours(count: int, rng: random.Random) -> str:
    """So many hours in words."""
    return rng.choice((f"{count} h", f"{count} hour" + "s" * (count > 1)))


def make_prompt(rng: random.Random) -> tuple[str, dict]:
    """A question and its slots."""
    while True:
        op = rng.choice("+-")
        start, h, m = rng.randrange(6 * 60, 22 * 60), rng.randint(1, 3), rng.randint(6, 54)
        end = start + (h * 60 + m if op == "+" else -h * 60 - m)
        if start % 60 and end % 60 and 0 < end < 24 * 60:
            break
    forms = ("{} h {} min", "{} hour{s} {} minutes", "{} hour{s} and {} minutes")
    dur = rng.choice(forms).format(h, m, s="s" * (h > 1))
    slots = person(rng) | {"start": clock(start), "dur": dur, "op": op, "answer": clock(end)}
    x = expand(rng.choice(PROMPTS[op]), slots, rng)
    return x, slots | {"m0": start, "h": h, "m": m}


def write(strategy: str, slots: dict, rng: random.Random) -> str:
    """A completion that takes the strategy."""
    m0, h, m, plus = slots["m0"], slots["h"], slots["m"], slots["op"] == "+"
    length, sign = h * 60 + m, 1 if plus else -1
    r = 60 - m0 % 60 if plus else m0 % 60
    unit, full = rng.choice(("min", "minutes")), clock(m0 + sign * r)
    if rng.random() < 0.4:
        full = full.replace(":00", " o'clock")
    rest_h, rest_m = divmod(length - r, 60)
    parts = [hours(rest_h, rng)] * (rest_h > 0) + [f"{rest_m} {unit}"] * (rest_m > 0)
    more = {"m1": m0 + sign * length, "dm": length, "h0": m0 // 60, "mi0": m0 % 60}
    more |= {"hh": hours(h, rng), "mm": f"{m} {unit}", "mid": clock(m0 + sign * h * 60)}
    more |= {"r": r, "unit": unit, "full": full, "rest": " ".join(parts), "end": slots["answer"]}
    more |= {"later": "later" if plus else "earlier", "add": "add" if plus else "take off"}
    more |= {"op_word": "plus" if plus else "minus", "way": "forward" if plus else "back"}
    return expand(rng.choice(POOLS[strategy]), slots | more, rng)


def parse(x: str) -> tuple[int, int, int] | None:
    """The given time in minutes, and the signed hours and minutes of the length."""
    time, length = CLOCK.search(x), LENGTH.search(x)
    if not time or not length:
        return None
    sign = -1 if hits(BACK, x) else 1
    start = int(time.group(1)) * 60 + int(time.group(2))
    return start, sign * int(length.group(1)), sign * int(length.group(2))


def solve(x: str) -> int | None:
    """The right time of day in minutes, by parsing the prompt."""
    parsed = parse(x)
    return parsed and parsed[0] + parsed[1] * 60 + parsed[2]


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """The strategy that y takes, and whether its last time of day is the answer to x."""
    parsed, truth = parse(x), solve(x)
    times = [int(a) * 60 + int(b) for a, b in CLOCK.findall(y)]
    right = bool(times) and times[-1] == truth if truth is not None else None
    start, h, _ = parsed or (None, 0, 0)
    inner = [time for time in times if time not in (start, truth)]
    scores = {
        "minutes": sum(1 for n in numbers(y) if n >= 100)
        + hits(r"\b(midnight|convert|everything to minutes|in minutes|minute \d)", y),
        "hours_first": 2 * (start is not None and start + 60 * h in inner)
        + 0.5 * hits(r"\d (h|hours?)\b(?! \d)|whole hours", y),
        "via_full_hour": 2 * any(time % 60 == 0 for time in inner)
        + 2 * hits("o'clock", y)
        + hits(r"full hour|on the hour|round time|next hour", y),
    }
    return best(scores, 2), right
