"""Judges by their names: `--judge`.

exact                   equal to the record's `answer`, or to a y of the prompt without one
number                  the last number is that of the answer, as GSM8K is scored
regex:PATTERN           the pattern is found; its groups `answer` and `strategy` are read
reasoning_gym:TASK      the task's own verifier, from the package reasoning-gym
cmd:COMMAND             a program that reads JSON and writes JSON
MODULE:FUNCTION         judge(x, y) -> (strategy or None, correct or None)
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
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from twcli.config.evaluate import EvalConfig
from twcli.data.dataset import stream_answers
from twcli.errors import UserError, first_line
from twcli.evaluation.judges import Judge, NoVerdict, Verdict, as_verdict, too_long
from twcli.storage.run_folder import RunFolder

READY = "exact, number, regex:PATTERN, reasoning_gym:TASK, cmd:COMMAND or MODULE:FUNCTION"
MOST_OUTPUT = 2**20  # bytes that a command may write
NUMBER = re.compile(r"(?:(?<![\w.)\]])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@dataclass(frozen=True)
class Reference:
    """What the records say of one prompt: its `answer`s, or else its ys, and the `metadata` that
    reasoning-gym's verifiers need.
    """

    answers: list[str]
    metadata: dict[str, Any] | None


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
    found = NUMBER.findall(text)
    if not found:
        return None
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-"))


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
        if found and "strategy" in groups:
            strategy = found["strategy"]
        else:
            strategy = None
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
        said = extract_answer(y)
        if said is None:
            said = y.strip()
        scores = []
        for answer in reference.answers:
            entry = {"question": x, "metadata": reference.metadata, "answer": answer}
            scores.append(float(score(said, entry)))
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
        written = _run(words, sent.encode(), seconds)
        return _reply(written)

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
            text = errors.read(MOST_OUTPUT).decode(errors="replace")
            said = text.strip().splitlines()
            if said:
                last = said[-1][:200]
            else:
                last = "it said nothing"
            raise NoVerdict(f"ended with code {process.returncode}: {last}")
        return written


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all that it started, by the process group that it leads; nothing where it
    has ended.
    """
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
