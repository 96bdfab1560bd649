"""What is printed while something is waited for: on a terminal, in a log, and with --quiet."""

import io
import re
import subprocess
import sys
import time

import pytest

from tests.conftest import make_records, write_jsonl
from twcli.cli import screen as screen_module
from twcli.cli.screen import Screen
from twcli.config.phases import DATA, SAVE, SCORE, TRAIN, Phases

WAITING = 0.6


class Stream(io.StringIO):
    """Where stderr goes; `terminal` is what it says of itself."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(screen_module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(screen_module, "LOG_SECONDS", 0.1)


def printed(monkeypatch, terminal=False, quiet=False, work=None):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with Screen(quiet) as screen:
        screen.phases.plan([DATA, SCORE, SAVE])
        work(screen)
    return stream.getvalue()


@pytest.mark.slow
def test_a_log_has_a_line_each_while_and_none_is_wider_than_80_columns(fast, monkeypatch):
    def work(screen):
        screen.phases.begin(DATA, "a/path/to/the/records.jsonl: " + "many words " * 20)
        screen.phases.expect({SAVE: 100.0})
        screen.phases.begin(SCORE)
        with screen.progress("tokens", 1000) as advance:
            for _ in range(6):
                advance(100, "9,000 a second")
                time.sleep(WAITING / 6)

    lines = printed(monkeypatch, work=work).splitlines()
    assert lines[0].startswith("1/3 data: a/path/to/the/records.jsonl: many words")
    assert max(map(len, lines)) <= 80 and lines[1].startswith("  ")
    clock = [line for line in lines if line.startswith("2/3 score the records: tokens: ")]
    assert 2 <= len(clock) <= WAITING / 0.1 + 1
    # of the four tenths that are left, and of what saving is expected to take
    assert re.search(r": [2-6]0%, 9,000 a second, about (100|101) s left in all$", clock[-1]) or (
        "about 2 min left in all" in clock[-1]
    )


@pytest.mark.slow
def test_a_phase_that_counts_nothing_says_how_long_it_takes(fast, monkeypatch):
    def work(screen):
        screen.phases.begin(SCORE, "the model")
        time.sleep(WAITING)

    first, *clock = printed(monkeypatch, work=work).splitlines()
    assert first == "2/3 score the records: the model"
    assert clock and set(clock) <= {
        "2/3 score the records: 0 s so far",
        "2/3 score the records: 1 s so far",
    }


@pytest.mark.slow
def test_a_phase_that_takes_longer_than_expected_promises_nothing(fast, monkeypatch):
    def work(screen):
        screen.phases.expect({SCORE: 0.05, SAVE: 3.0})
        screen.phases.begin(SCORE)
        time.sleep(WAITING)

    _, *clock = printed(monkeypatch, work=work).splitlines()
    assert clock and all("so far" in line for line in clock)


@pytest.mark.slow
def test_after_the_last_step_the_first_estimate_of_a_training_is_forgotten(fast, monkeypatch):
    def work(screen):
        screen.phases.begin(TRAIN)
        screen.phases.expect({TRAIN: 1000.0})
        with screen.training() as on_step:
            on_step({**step_of(2000, "settle", 1.0), "step": 2000})
            time.sleep(WAITING)

    lines = printed(monkeypatch, work=work).splitlines()
    assert "so far" in lines[-1] and not any("16 min" in line for line in lines[2:])


def test_the_clock_does_not_rise_while_a_large_part_is_in_hand(fast, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(screen_module.time, "monotonic", lambda: now[0])
    screen = Screen(quiet=True)
    status = screen_module.Status("records", 100, 0.0)
    now[0] = 30.0
    status.advance(20)
    left = []
    for seconds in (30.0, 40.0, 59.0, 100.0):
        now[0] = seconds
        left.append(screen._left(status))
    assert left == [120.0, 110.0, 91.0, 90.0]  # 1.5 s each; at least the 60 after these 20


@pytest.mark.slow
def test_the_clock_of_a_resumed_training_is_of_the_steps_that_are_left(fast, monkeypatch):
    def work(screen):
        screen.phases.expect({TRAIN: 6000.0})
        screen.phases.begin(TRAIN)
        screen.phases.expect_now(300.0)  # what `train` says of the last 100 of 2,000 steps
        with screen.training() as on_step:
            time.sleep(0.3)  # before there is a rate
            on_step({**step_of(1901, "settle", 1.0), "steps": 2000})
            time.sleep(0.3)
            on_step({**step_of(1902, "settle", 1.0), "steps": 2000})
            time.sleep(0.3)

    text = printed(monkeypatch, work=work)
    left = [int(minutes) for minutes in re.findall(r"(\d+) min left", text)]
    assert left and max(left) <= 5 and " h " not in text
    assert re.search(r"\b[1-8]?\d s left", text)  # from the rate: 98 steps of 0.3 s


def test_another_run_after_a_resumed_one_is_expected_to_take_its_whole_time():
    phases = Phases()
    phases.plan([TRAIN, SAVE, TRAIN])
    phases.expect({TRAIN: 600.0, SAVE: 1.0})
    phases.begin(TRAIN)
    phases.expect_now(60.0)
    assert phases.expected() == 60.0 and phases.after() == 601.0
    phases.begin(SAVE)
    phases.begin(TRAIN)
    assert phases.expected() == 600.0


@pytest.mark.slow
def test_lines_become_rarer_the_longer_a_phase_takes(fast, monkeypatch):
    monkeypatch.setattr(screen_module, "LOG_SHARE", 0.5)

    def work(screen):
        screen.phases.begin(SCORE)
        time.sleep(2 * WAITING)

    # 0.1, 0.2, 0.4 and 0.8 seconds after the beginning
    assert 2 <= len(printed(monkeypatch, work=work).splitlines()) <= 6


@pytest.mark.slow
def test_a_terminal_has_one_living_line_that_is_gone_at_the_end(fast, monkeypatch):
    def work(screen):
        screen.phases.begin(SCORE)
        with screen.progress("tokens", 100) as advance:
            advance(50)
            time.sleep(0.2)
            screen.say("a fact")
            time.sleep(0.2)

    text = printed(monkeypatch, terminal=True, work=work)
    assert "50%|" in text and "a fact\n" in text
    assert text.count("\n") == 2  # the phase, and the fact
    # carriage returns and blanks: nothing is left of the living line
    assert text.rsplit("\n", 1)[1].rsplit("\r", 2)[-2].strip() == ""
    for drawn in re.split(r"[\r\n]", text):
        assert len(drawn) <= 80


@pytest.mark.slow
def test_quiet_is_silent_and_starts_no_clock(fast, monkeypatch):
    def work(screen):
        screen.phases.begin(SCORE)
        with screen.progress("tokens", 10) as advance:
            advance(1)
            time.sleep(0.2)
        screen.say("a fact")

    for terminal in (False, True):
        assert printed(monkeypatch, terminal=terminal, quiet=True, work=work) == ""


def test_one_process_of_a_job_speaks(fast, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert printed(monkeypatch, work=lambda screen: screen.say("a fact")) == ""


def step_of(step, stage, loss):
    return {
        "step": step,
        "steps": 2000,
        "stage": stage,
        "loss": loss,
        "records": 10,
        "posterior_mass": [0.5, 0.5],
        "posterior_entropy": 0.0 if stage == "settle" else 0.6,
        "mutual_information": 0.0,
        "usage": 2.0,
    }


def test_a_training_has_one_line_for_the_steps_that_take_turns(fast, monkeypatch):
    """Even steps correct the names, odd ones teach them: the line has both losses, and what the
    posterior knows, which only the second kind shows.
    """
    steps = [step_of(n, "settle" if n % 2 else "refine", 2.0 + n % 2) for n in range(1991, 2001)]

    def work(screen):
        screen.phases.begin(TRAIN)
        with screen.training() as on_step:
            for step in steps:
                on_step(step)

    *_, last = printed(monkeypatch, work=work).splitlines()
    assert last.startswith("step 2,000/2,000  renaming  loss 2.000/3.000  I(z; y) 0.69 nats")
    assert len(last) <= 80


@pytest.mark.slow
def test_the_records_are_checked_before_torch_is_imported(tmp_path):
    """Its import takes seconds. What there is to read is said first, and so is what is wrong."""
    data = write_jsonl(tmp_path / "data.jsonl", make_records())
    broken = tmp_path / "broken.jsonl"
    broken.write_text((tmp_path / "data.jsonl").read_text() + '{"x": "a"}\n')
    (tmp_path / "m").mkdir()
    model, out = ["--model", str(tmp_path / "m")], ["--out", str(tmp_path / "o.jsonl")]
    calls = {
        "precompute": [*model, *out],
        "discover": [*model, *out],
        "train": [*model, "--baseline", "b.h5", "--latents", "2", *out],
        "eval": ["--run", str(tmp_path / "m")],
        "sample": [*model],
    }
    code = f"""
import sys
from click.testing import CliRunner
from twcli.cli.main import main

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "sklearn", "scipy", "accelerate"):
            raise LookupError(name)

sys.meta_path.insert(0, Torch())
for command, flags in {calls!r}.items():
    result = CliRunner().invoke(main, [command, *flags, "--data", {data!r}])
    assert isinstance(result.exception, LookupError), (command, result.output)
    first, then, load = result.stderr.splitlines()
    assert "data: " in first and "12 records" in first, first
    assert then.startswith("then: 2 load the ") and load.startswith("2/"), load
    result = CliRunner().invoke(main, [command, *flags, "--data", {str(broken)!r}])
    if command != "sample":  # it reads prompts alone
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        assert "broken.jsonl:13" in result.stderr
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
