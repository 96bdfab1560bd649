"""The commands and claims of the README and of docs/, run."""

import ast
import graphlib
import io
import json
import re
import runpy
import shlex
import tokenize
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import WORDS, make_model, make_records, make_tokenizer, write_jsonl
from twcli.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


# a fenced block, and the comment above one that cannot be run here
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LONGEST = {"README.md": 130, "commands.md": 1000}  # lines of a page; 250 elsewhere


def prepare(folder):
    make_model().save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}w19 {{ m['content'] }} <eos> {% endfor %}"
    )
    tokenizer.save_pretrained(folder / "model")
    write_jsonl(folder / "train.jsonl", make_records(20, 4))
    write_jsonl(folder / "test.jsonl", make_records(5, 4, seed=1))


def call(line):
    arguments = shlex.split(line)
    assert arguments[0] == "twcli", line
    if arguments[1] == "train":
        arguments += ["--steps", "4", "--batch-tokens", "300"]
    result = CliRunner().invoke(main, arguments[1:])
    assert result.exit_code == 0, (line, result.output)


def run_blocks(page):
    """Runs a page's blocks in the current folder, in their order; returns the number of commands
    and of pieces of Python that ran.
    """
    ran, names = 0, {}
    for reason, language, code in BLOCK.findall(page.read_text()):
        for theirs in ("14 3 9 0 7", "9 3 14 7 0", "How do I sleep better during exams?"):
            code = code.replace(theirs, " ".join(WORDS[:3]))
        if reason or language in ("", "text"):
            continue
        if language == "python":
            code = code.replace("    **files,\n", "    **files,\n    steps=4, batch_tokens=300,\n")
            exec(compile(code, str(page), "exec"), names)
            ran += 1
            continue
        lines = code.splitlines()
        if language == "make":  # the prerequisites come last
            lines = [line.strip() for line in reversed(lines) if line.startswith("\t")]
            first, last = (line.replace("--out run", "--out made") for line in lines)
            lines = [
                first.replace("$<", "train.jsonl").replace("$@", "made.bt.h5"),
                last.replace("$<", "made.bt.h5"),
            ]
        else:
            assert language == "sh", (page.name, language)
        for line in lines:
            call(line)
            ran += 1
    return ran


@pytest.mark.slow
@pytest.mark.timeout(900)  # it names records several times: minutes on a machine that does more
def test_every_block_of_the_readme_and_the_documents_runs_or_says_why_not(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_blocks(ROOT / "README.md") == 5
    assert sum(map(run_blocks, PAGES)) >= 18


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pages_are_short(page):
    assert len(page.read_text().splitlines()) <= LONGEST.get(page.name, 250)


def test_the_figures_of_the_demo_are_those_of_its_files(capsys):
    """What the demo's page and the README say is what `make demo` wrote."""
    folder = ROOT / "docs" / "tutorials"
    files = {name: folder / "demo" / f"{name}.json" for name in ("uniform", "ours")}
    compare = runpy.run_path(str(ROOT / "examples" / "compare.py"))
    compare["main"]([f"{name}={file}" for name, file in files.items()])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    page = [line.strip() for line in (folder / "demo.md").read_text().splitlines()]
    first = page.index(printed[0])
    assert page[first : first + len(printed)] == printed

    figures = [compare["figures_of"](compare["read"](file)) for file in files.values()]
    for key in ("strategy_accuracy", "answer_accuracy", "collapsed", "gain"):
        values = (" ".join(one[key].split()) for one in figures)
        assert f"| {' | '.join(values)} |" in README, key
    assert f"(chance {figures[0]['majority'].split()[0]})" in README


def test_the_figures_of_the_chat_model_are_those_of_its_file():
    folder = ROOT / "docs" / "tutorials"
    result = json.loads((folder / "chat-model.json").read_text())
    known = {}
    for part in (result, result["alignment"], result["posterior"], result["likelihood"]):
        known |= part
    page = (folder / "chat-model.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.* \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for name, *shown in rows:
        assert shown == [f"{value:.2f}" for value in (known[name], *known[f"{name}_ci"])], name


def table(page, heading):
    """The rows of the first table below a heading, as dicts."""
    below = page.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in body]


def spread(page, heading, column):
    """(mean, lowest, highest) with three digits, of the row over all tasks."""
    found = re.findall(r"-?[\d.]+", table(page, heading)[-1][column])
    numbers = [f"{float(number):.3f}" for number in found]
    return tuple(numbers if len(numbers) == 3 else 3 * numbers)


def assert_in_short(page, expected):
    """Each figure of `In short` is a mean over runs, with the lowest and the highest, of a table
    that a command wrote below it.
    """
    short = table(page, "## In short")
    for question, (mean, low, high) in expected.items():
        (row,) = [row for row in short if row["question"].startswith(question)]
        assert mean in row["figure"], question
        assert f"({low} to {high})" in row["seeds (range)"], question


def test_the_summary_of_the_results_is_that_of_its_tables():
    page = (ROOT / "docs" / "results.md").read_text()
    ours, aside = "### Six tasks, ours", "### Held aside: nothing was tuned on these, ours"
    expected = {
        "Does a latent mean one strategy?": spread(page, ours, "generation 1:1"),
        "Are answers still right?": spread(page, ours, "answers"),
        "Does the model lose likelihood?": spread(page, ours, "gain (nats)"),
        "Are all strategies of a prompt reached?": spread(page, ours, "coverage"),
        "And on tasks on which nothing was chosen?": spread(page, aside, "generation 1:1"),
    }
    assert_in_short(page, expected)
    short = {row["question"]: row for row in table(page, "## In short")}
    ranked = re.search(r"over the (\d+) runs .* with generation 1:1 (-?[\d.]+),", page)
    score = short["Does the score rank runs without labels?"]
    assert score["seeds (range)"] == f"{ranked[1]} runs"
    assert score["figure"] == f"Spearman {ranked[2]} with generation 1:1"

    march, april = table(page, "## Beside published figures")
    by_task = {row[next(iter(row))]: row["generation 1:1"].split()[0] for row in table(page, ours)}
    column = "ours on tasks of the same names"
    for name, task in (
        ("grid", "grid_pathfinding"),
        ("addition", "multidigit_addition"),
        ("sorting", "sorting_algorithms"),
    ):
        assert (f"{name} {by_task.get(task)}" in march[column]) == (task in by_task), name
    assert by_task["all"] in april[column]


def test_the_summary_of_earlier_results_is_that_of_its_tables():
    """Whose files were not kept."""
    page = (ROOT / "docs" / "results-history.md").read_text()
    rows = table(page, "## The defaults of 2026-11-27")
    runs = [float(row["generation 1:1"]) for row in rows]
    ours, aside = "### Six tasks: ours", "### Held aside: nothing was tuned on these: ours"
    expected = {
        "Does a latent mean one strategy? six tasks": spread(page, ours, "generation 1:1"),
        "The same with the defaults of 2026-11-27": tuple(
            f"{value:.3f}" for value in (sum(runs) / len(runs), min(runs), max(runs))
        ),
        "And under the uniform loss?": spread(page, "### Six tasks: uniform", "generation 1:1"),
        "And with token weights alone?": spread(page, "### Six tasks: token", "generation 1:1"),
        "Are answers still right?": spread(page, ours, "answers"),
        "Does the model lose likelihood?": spread(page, ours, "gain (nats)"),
        "Tasks on which nothing was chosen": spread(page, aside, "generation 1:1"),
    }
    assert_in_short(page, expected)


COMMAND = re.compile(r"`(make |twcli |python |benchmarks/)|^(    make|twcli|python) ", re.MULTILINE)
FIGURES = {  # pages with tables of figures: how many at least
    "README.md": 1,
    "docs/results.md": 3,
    "docs/results-history.md": 12,
    "docs/benchmarks.md": 1,
    "docs/benchmarks-history.md": 2,
    "docs/natural.md": 1,
    "docs/natural-served.md": 1,
    "docs/pass-at-k.md": 4,
    "docs/upskill.md": 2,
    "docs/tutorials/chat-model.md": 1,
    "docs/tutorials/cluster.md": 1,
}
OF_ONE_DAY = {"docs/pass-at-k.md", "docs/upskill.md"}  # pages of one measurement


@pytest.mark.parametrize("name", FIGURES)
def test_every_table_of_figures_has_a_command_and_a_date_or_a_source(name):
    """In its own section or in what is said before it; of what others have published, each row with
    a figure has a link.
    """
    said = {1: "", 2: "", 3: ""}  # of the page, of the section and of the part of it
    tables = 0
    for part in re.split(r"^(?=#{1,3} )", (ROOT / name).read_text(), flags=re.MULTILINE):
        level = len(part) - len(part.lstrip("#"))
        said |= {deeper: "" for deeper in said if deeper > level} | {level: part}
        rows = [line for line in part.splitlines() if line.startswith("|")][2:]
        figures = [row for row in rows if re.search(r"\d", re.sub(r"\(http\S+", "", row))]
        if not figures or all(re.search(r"\]\(http|\]\[\w+\]", row) for row in figures):
            continue
        tables += 1
        context = "\n".join(said.values())
        dated = context if name in OF_ONE_DAY or level == 1 else said[2] + said[3]
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", dated), part[:80]
        assert COMMAND.search(context), part[:80]
    assert tables >= FIGURES[name]


def test_the_command_reference_is_what_the_commands_say():
    page = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))["reference"]()
    assert COMMANDS.read_text() == page, "run: python docs/make_commands.py"


def test_every_option_in_the_documents_exists():
    known = set(re.findall(r"`(-[\w-]+)", COMMANDS.read_text())) | {"--help"}
    # of accelerate, a page's own script and the torture
    others = {
        "--num_processes",
        "--multi_gpu",
        "--check",
        "--only",
        "--short",
        "--generation-config",
        "--model-path",
        "--jinja",
    }
    for page in [ROOT / "README.md", *PAGES]:
        text = re.sub(r"python examples/.*|pip (install|download).*", "", page.read_text())
        named = set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", text))
        assert named <= known | others, (page.name, named - known - others)


# Words of a dialect, and what to write instead.
DIALECT = {
    r"(told|tell|tells|telling) (apart|best|well|from|alike)": "predicted, distinguished, reported",
    r"told": "predicted, distinguished, reported",
    r"(tell|tells|telling) (\w+ ){1,3}apart": "distinguish",
    r"(go|goes|going|gone|went) on( from| where| with)?": "resume, continue",
    r"anew": "again",
    r"(mend|mends|mended|mending)": "fix, reassign",
    r"hangs? on": "depends on",
    r"(stand|stands|stood) (in|at|before|between|beside|next|on|together)": "is, occurs",
    r"rooms?": "module, folder, memory, limit",
    r"understud(y|ies|ied)": "spare latents",
    r"(by themselves|by itself) (read|told)": "separately",
}


def prose(code):
    """Docstrings and comments."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join([*(ast.get_docstring(node) or "" for node in nodes), *comments])


def test_help_and_documents_speak_the_fields_words():
    def commands(command, context):
        yield command.help or ""
        yield from (getattr(option, "help", None) or "" for option in command.params)
        for name in getattr(command, "commands", ()):
            yield from commands(command.get_command(context, name), context)

    texts = {page.name: page.read_text() for page in [ROOT / "README.md", *PAGES]}
    texts["CHANGELOG.md"] = (ROOT / "CHANGELOG.md").read_text()
    texts["help"] = "\n".join(commands(main, None))
    for file in (ROOT / "twcli").rglob("*.py"):  # docstrings, messages and names
        for node in ast.walk(ast.parse(file.read_text())):
            place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts[place] = texts.get(place, "") + node.value
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.arg)):
                name = node.arg if isinstance(node, ast.arg) else node.name
                texts[place] = texts.get(place, "") + " " + name.replace("_", " ")
    texts["Makefile"] = (ROOT / "Makefile").read_text()
    for folder in ("twcli", "examples", "benchmarks"):  # strings of examples are data
        for file in (ROOT / folder).rglob("*.py"):
            texts[f"prose of {file.relative_to(ROOT)}"] = prose(file.read_text())
    for place, text in texts.items():
        for pattern, instead in DIALECT.items():
            found = re.search(rf"\b{pattern}\b", text, re.IGNORECASE)
            assert not found, f"{place}: '{found[0]}'; write {instead}"


def anchors(page):
    """What a link may name after #, as GitHub and the site make it of the headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + pictures:
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), (page.name, target)
            assert not anchor or anchor in anchors(linked), (page.name, target)


def test_every_document_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert listed >= {page for page in PAGES if page.is_relative_to(index.parent) and page != index}


def test_every_document_is_on_the_site():
    """`mkdocs build` finds the pages that the site's own list names."""
    named = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(named) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


def links(page):
    return re.findall(r"\]\(([^)#]+)", page.read_text())


def test_the_shell_completes_commands_and_options():
    for words, wanted in (
        ("twcli pre", "precompute"),
        ("twcli train --gradient", "--gradient-checkpointing"),
        ("twcli train --adapt l", "lora"),
    ):
        result = CliRunner().invoke(
            main,
            prog_name="twcli",
            env={
                "_TWCLI_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
        )
        assert wanted in result.output, (words, result.output)


def test_the_file_tree_is_the_real_one():
    map_of_code = (ROOT / "CONTRIBUTING.md").read_text().split("## What is where", 1)[1]
    listed = re.findall(r"^ {6}(\w+)/ ", map_of_code, re.MULTILINE)
    assert {path.parent.name for path in (ROOT / "twcli").glob("*/__init__.py")} == set(listed)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" | ") for layer in settings["contracts"][0]["layers"]]
    depth = {name: number for number, layer in enumerate(layers) for name in layer}
    assert listed == sorted(listed, key=depth.get, reverse=True)
    for path in (ROOT / "twcli").rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
    examples, benchmarks = map_of_code.split("    examples/", 1)[1].split("    benchmarks/", 1)
    for folder, text in (("examples", examples), ("benchmarks", benchmarks)):
        for name in re.findall(r"\b(\w+\.py)\b", text):
            assert (ROOT / folder / name).is_file()


def test_every_make_target_is_in_the_makefile():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "clean"} <= targets
    assert set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= targets


def test_no_module_imports_itself_through_others():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in (ROOT / "twcli").rglob("*.py")
    }
    imports = {
        module: {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if name in files
        }
        for module, file in files.items()
    }
    list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError
