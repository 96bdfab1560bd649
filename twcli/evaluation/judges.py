"""Who says whether a completion is right, and in which strategy it is written: `--judge`.

    exact                   equal to the record's `answer`, or to a y of the prompt without one
    number                  the last number is that of the answer, as GSM8K is scored
    regex:PATTERN           the pattern is found; its groups `answer` and `strategy` are read
    reasoning_gym:TASK      the task's own verifier, from the package reasoning-gym
    cmd:COMMAND             a program that reads JSON and writes JSON
    MODULE:FUNCTION         judge(x, y) -> (strategy or None, correct or None)

A judge that raises, returns something else or takes too long costs the completion its verdict; how
many, and why, is reported. Only where no completion got a verdict does the evaluation end.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import reprlib
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from twcli.config.evaluate import EvalConfig
from twcli.data.dataset import stream_answers
from twcli.errors import UserError, first_line
from twcli.storage.run_folder import RunFolder

Verdict = tuple[str | None, bool | None]
VERDICT = "a judge returns (strategy or None, correct or None), text and True or False"
READY = "exact, number, regex:PATTERN, reasoning_gym:TASK, cmd:COMMAND or MODULE:FUNCTION"
MOST_OUTPUT = 2**20  # bytes that a command may write
SHOWN_FAILURES = 5
AGAIN = 1.0  # seconds between alarms for a judge that swallowed the first one
NUMBER = re.compile(r"(?:(?<![\w.)\]])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


class NoVerdict(Exception):
    """A judge that gave no verdict for one completion, and why."""


class _TooLong(BaseException):
    """Not an Exception, or a judge that catches all of those would continue."""


@dataclass(frozen=True)
class Reference:
    """What the records say of one prompt: its `answer`s, or else its ys, and the `metadata` that
    reasoning-gym's verifiers need.
    """

    answers: list[str]
    metadata: dict[str, Any] | None


@dataclass
class Judge:
    """A judge by its name, and what it failed at.

    Attributes:
        function: x, y -> verdict; may raise anything.
        seconds: for one completion.
        names_strategies: whether it can say in which strategy a completion is written.
        calls: how many verdicts run at once.
        failures: why completions have no verdict -> how many.
        examples: a few of them: x, y and the reason.
    """

    name: str
    function: Callable[[str, str], Any]
    seconds: float
    names_strategies: bool = True
    calls: int = 1
    asked: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def verdicts(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] | None = None
    ) -> list[Verdict | None]:
        """The verdict on each (x, y), None where there is none; equal pairs are judged once.

        Raises:
            UserError: not one of them could be judged.
        """
        distinct = list(dict.fromkeys(pairs))
        found: dict[tuple[str, str], Verdict | NoVerdict] = {}
        for pair, verdict in zip(distinct, self._each(distinct), strict=True):
            found[pair] = verdict
            if progress:
                progress(1)
        result: list[Verdict | None] = []
        for x, y in pairs:
            verdict = found[x, y]
            if isinstance(verdict, NoVerdict):
                self.failures[str(verdict)] += 1
                if len(self.examples) < SHOWN_FAILURES:
                    self.examples.append({"x": x, "y": y, "reason": str(verdict)})
            result.append(None if isinstance(verdict, NoVerdict) else verdict)
        self.asked += len(pairs)
        if pairs and all(verdict is None for verdict in result):
            y = pairs[0][1]
            reason = str(found[pairs[0]])
            hint = f"; {VERDICT}" if reason.startswith(("raised", "returned")) else ""
            raise UserError(f"--judge {self.name}: {reason} on y {y[:60]!r}{hint}")
        return result

    def report(self) -> dict[str, Any]:
        """What `eval --json` says of it."""
        failed = sum(self.failures.values())
        return {
            "name": self.name,
            "asked": self.asked,
            "failed": failed,
            "reasons": dict(self.failures.most_common(SHOWN_FAILURES)),
            "examples": self.examples,
        }

    def warning(self) -> str | None:
        """One line where completions have no verdict."""
        failed = sum(self.failures.values())
        if not failed:
            return None
        reasons = "; ".join(f"{n:,} times {why}" for why, n in self.failures.most_common(3))
        return (
            f"--judge {self.name}: {failed:,} of {self.asked:,} completions have no verdict and "
            f"are left out: {reasons}; the first is of x {self.examples[0]['x'][:60]!r}"
        )

    def _each(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Verdict | NoVerdict]:
        """The verdict on each pair in order, several at a time where the judge permits it."""
        if self.calls > 1:
            with ThreadPoolExecutor(self.calls) as pool:
                yield from pool.map(lambda pair: self._one(pair, None), pairs)
            return
        with redirect_stdout(sys.stderr), _alarm() as limit:  # standard output is for the result
            yield from (self._one(pair, limit) for pair in pairs)

    def _one(self, pair: tuple[str, str], limit: Callable[..., Any] | None) -> Verdict | NoVerdict:
        """The verdict on a pair, or why there is none; a judge may raise anything."""
        try:
            if limit is None:
                return as_verdict(self.function(*pair))
            return as_verdict(limit(self.seconds, self.function, *pair))
        except NoVerdict as error:
            return error
        except _TooLong:
            return too_long(self.seconds)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            return NoVerdict(f"raised {type(error).__name__}: {str(error)[:200]}")


def too_long(seconds: float) -> NoVerdict:
    """The reason that names the limit."""
    return NoVerdict(f"took more than {seconds:g} s (--judge-seconds)")


def as_verdict(value: Any) -> Verdict:
    """(strategy, correct) as plain values.

    Raises:
        NoVerdict: it is something else.
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        strategy, correct = value
        if isinstance(strategy, str | None) and (
            correct is None
            or (isinstance(correct, int | np.integer | np.bool_) and correct in (0, 1))
        ):
            return strategy or None, None if correct is None else bool(correct)
    raise NoVerdict(f"returned {reprlib.repr(value)}")


@contextmanager
def _alarm() -> Iterator[Callable[..., Any] | None]:
    """Gives a caller that ends a function after some seconds by a signal, which also ends a regular
    expression; None outside the main thread and on systems without it, where nothing is ended.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield None
        return
    running = False

    def ring(_number: int, _frame: Any) -> None:
        if running:
            raise _TooLong

    def limited(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal running
        running = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            return function(*arguments)
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    # somebody else's alarm is set again with what is left of it
    begun = time.monotonic()
    left = signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield limited
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left[0]:
            remaining = max(left[0] - (time.monotonic() - begun), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, remaining, left[1])


# By name


def load_judge(config: EvalConfig) -> Judge:
    """The judge at `config.judge`.

    Raises:
        UserError: there is no such judge, or the records lack what it needs.
    """
    name = config.judge or ""
    kind, _, rest = name.partition(":")
    seconds = config.judge_seconds
    if name in ("exact", "number"):
        function = {"exact": is_exact, "number": is_number}[name]
        references = read_references(config)
        return Judge(name, partial(_against, references, function), seconds, False)
    if not rest or not kind:
        raise UserError(f"--judge {name}: give {READY}, such as examples.tasks:judge")
    if kind == "regex":
        return _regex_judge(name, rest, config)
    if kind == "reasoning_gym":
        return _verifier(name, rest, config)
    if kind == "cmd":
        return _command(name, rest, config)
    return Judge(name, _imported(name, kind, rest), seconds)


def _imported(name: str, module: str, function: str) -> Any:
    """The function of a user's module; raises UserError where it cannot be imported."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # standard output is for the result
            judge = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a user's module may raise anything; say whose it was
        raise UserError(
            f"--judge {name}: cannot be imported from {os.getcwd()}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not callable(judge):
        raise UserError(f"--judge {name}: is not a function")
    return judge


def read_references(config: EvalConfig) -> dict[str, Reference]:
    """x -> what its records say.

    Raises:
        UserError: as `stream_answers`.
    """
    found: dict[str, Reference] = {}
    ys: dict[str, list[str]] = {}
    trained = RunFolder(config.run).read_fields()
    for x, y, answer, metadata in stream_answers(config.data, **config.fields, trained=trained):
        reference = found.setdefault(x, Reference([], metadata))
        if answer is None:
            ys.setdefault(x, []).append(y)
        elif answer not in reference.answers:
            reference.answers.append(answer)
    for x, reference in found.items():
        if not reference.answers:
            reference.answers.extend(dict.fromkeys(ys[x]))
    return found


def _against(
    references: dict[str, Reference], is_right: Callable[[str, str], bool], x: str, y: str
) -> Verdict:
    """Whether y is one of x's reference answers, by the given comparison."""
    return None, any(is_right(y, answer) for answer in references[x].answers)


def is_exact(y: str, answer: str) -> bool:
    """Equal but for white space at the ends."""
    return y.strip() == answer.strip()


def is_number(y: str, answer: str) -> bool:
    """The last number of y is the last one of the answer; commas between thousands, `$` and zeros
    behind the point do not matter.

    Raises:
        NoVerdict: the answer holds no number.
    """
    wanted = last_number(answer)
    if wanted is None:
        raise NoVerdict(f"found no number in the answer {answer[:60]!r}")
    return last_number(y) == wanted


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None without one. A minus belongs to it unless it is between
    operands.
    """
    found = [None, *NUMBER.finditer(text)][-1]
    return found and Decimal(found[0].replace(",", "").replace("\u2212", "-"))


def _regex_judge(name: str, pattern: str, config: EvalConfig) -> Judge:
    """A judge by a regular expression, whose last match counts.

    Raises:
        UserError: it is none, or has groups without a meaning.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--judge {name}: is no regular expression: {error}") from error
    groups = set(compiled.groupindex)
    if unknown := groups - {"answer", "strategy"}:
        raise UserError(
            f"--judge {name}: the group {sorted(unknown)[0]} means nothing; name groups `answer` "
            "and `strategy`"
        )
    references = read_references(config) if "answer" in groups else {}

    def judge(x: str, y: str) -> Verdict:
        found = [None, *compiled.finditer(y)][-1]
        strategy = found["strategy"] if found and "strategy" in groups else None
        if "answer" in groups:
            said = found["answer"] if found else None
            right = said is not None and any(is_exact(said, a) for a in references[x].answers)
            return strategy, right
        return strategy, None if "strategy" in groups else found is not None

    return Judge(name, judge, config.judge_seconds, "strategy" in groups)


def _verifier(name: str, task: str, config: EvalConfig) -> Judge:
    """Scores of reasoning-gym lie between 0 and 1; only 1 is right. What is in <answer> tags is
    the answer, else all of y.
    """
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            # One of its dependencies warns when it is first compiled, which is no user's concern.
            warnings.simplefilter("ignore", SyntaxWarning)
            from reasoning_gym import get_score_answer_fn
            from reasoning_gym.utils import extract_answer
    except ImportError as error:
        raise UserError(f"--judge {name}: needs pip install 'twcli-cvae[eval]'") from error
    try:
        score = get_score_answer_fn(task)
    except ValueError as error:
        raise UserError(f"--judge {name}: {first_line(error)}") from error
    references = read_references(config)
    if all(reference.metadata is None for reference in references.values()):
        raise UserError(
            f"--judge {name}: no record of {config.data} has a field 'metadata', which the "
            "verifiers need; keep the fields of reasoning-gym's entries in the records"
        )

    def judge(x: str, y: str) -> Verdict:
        reference = references[x]
        if reference.metadata is None:
            raise NoVerdict("found no metadata in the record")
        entry = {"question": x, "metadata": reference.metadata}
        said = extract_answer(y)
        scores = [
            float(score(y.strip() if said is None else said, entry | {"answer": answer}))
            for answer in reference.answers
        ]
        return None, max(scores) >= 1

    return Judge(name, judge, config.judge_seconds, False)


def _command(name: str, command: str, config: EvalConfig) -> Judge:
    """One process a completion: {"x": .., "y": .., "answer": ..} on its standard input, and nothing
    of it on its command line; it writes {"strategy": .., "correct": ..} and ends with 0.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--judge {name}: {error}") from error
    if not words:
        raise UserError(f"--judge {name}: names no command")
    references = read_references(config)
    seconds = config.judge_seconds

    def judge(x: str, y: str) -> Verdict:
        answers = references[x].answers if x in references else []
        sent = json.dumps({"x": x, "y": y, "answers": answers})
        return _reply(_run(words, sent.encode(), seconds))

    return Judge(name, judge, seconds, calls=os.cpu_count() or 1)


def _run(words: list[str], sent: bytes, seconds: float) -> bytes:
    """What the command wrote; where it takes too long or writes too much, it is ended together with
    the processes that it started.
    """
    # files, so that neither side can wait for the other to read
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as errors:
        asked.write(sent)
        asked.seek(0)
        try:
            process = subprocess.Popen(
                words, stdin=asked, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise NoVerdict(f"cannot be started: {error.strerror}") from error
        expired = threading.Event()

        def end() -> None:
            expired.set()
            _end_group(process)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            with process:
                assert process.stdout is not None
                written = process.stdout.read(MOST_OUTPUT + 1)
                if len(written) > MOST_OUTPUT:
                    _end_group(process)
        finally:
            timer.cancel()
        if expired.is_set():
            raise too_long(seconds)
        if len(written) > MOST_OUTPUT:
            raise NoVerdict(f"wrote more than {MOST_OUTPUT >> 20} MiB")
        if process.returncode:
            errors.seek(0)
            said = errors.read(MOST_OUTPUT).decode(errors="replace").strip().splitlines()
            last = said[-1][:200] if said else "it said nothing"
            raise NoVerdict(f"ended with code {process.returncode}: {last}")
        return written


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all that it started."""
    if process.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _reply(written: bytes) -> Verdict:
    """The verdict that a command wrote; raises NoVerdict for anything else."""
    try:
        reply = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise NoVerdict(
            f"wrote {reprlib.repr(written.decode(errors='replace'))}, which is not the JSON object "
            '{"strategy": text or null, "correct": true, false or null}'
        ) from error
    if isinstance(reply, dict) and reply and set(reply) <= {"strategy", "correct"}:
        return as_verdict((reply.get("strategy"), reply.get("correct")))
    raise NoVerdict(
        f"wrote {reprlib.repr(reply)}, which is not the JSON object "
        '{"strategy": text or null, "correct": true, false or null}'
    )
