"""The command line: options become a config, a config becomes one call; nothing
below it prints but `screen`.

twcli precompute | discover | train | eval | sample | export | inspect | doctor
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from twcli import __version__, signals
from twcli.cli.flags import GroupedCommand, GroupedOption, config_options, origins, resolve
from twcli.cli.screen import Screen, folded
from twcli.commands.export_config import ExportConfig
from twcli.config.discover import DiscoverConfig
from twcli.config.evaluate import EvalConfig
from twcli.config.inputs import AUTO, FORMAT_HELP, FORMATS
from twcli.config.options import INPUTS, check_characters
from twcli.config.phases import (
    DATA,
    DISCOVER,
    EXPORT,
    LOAD_MODEL,
    LOAD_RUN,
    REHEARSAL,
    evaluation_phases,
    is_main_process,
    precompute_phases,
    sampling_phases,
    training_phases,
)
from twcli.config.precompute import PrecomputeConfig
from twcli.config.sample import SampleConfig
from twcli.config.train import TrainConfig
from twcli.errors import Interrupted, TwcliError, UserError, WorkFailed, first_line, interrupted

if TYPE_CHECKING:
    from twcli.data.dataset import Examples

dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; print what would be read, and estimates of time and memory.",
)


class OneLineErrors(click.Group):
    """Turns every error that a user can meet into one line on stderr and an exit code."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order of use, as help shows them."""
        return list(self.commands)  # in the order of use

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        """Runs a command; every error that a user can meet ends in one line and an exit code."""
        settings["standalone_mode"] = False
        # None where the caller closed it; the next file opened would get its number
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        try:
            code = super().main(*args, **settings)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help(), err=True)
            code = 2
        except click.ClickException as error:
            error = _instead(error)
            if isinstance(error, click.UsageError) and error.ctx:
                place = error.ctx.command_path
            else:
                place = "twcli"
            code = _fail(f"{place}: {error.format_message()}", 2)
        except (KeyboardInterrupt, click.Abort, Interrupted) as error:
            code = _fail(f"twcli: {str(error) or 'interrupted'}", signals.exit_code())
        except TwcliError as error:
            code = _fail(f"twcli: {error}", error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except OSError as error:
            code = _fail(
                f"twcli: {error.filename or 'input or output'}: {error.strerror or error}", 1
            )
        except RuntimeError as error:
            # torch's; importing it would take seconds
            if type(error).__name__ != "OutOfMemoryError":
                raise
            code = _fail(f"twcli: out of memory: {first_line(error)}; lower --batch-tokens", 1)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, context: click.Context) -> Any:
        """As click's, but for what an interruption says."""
        try:
            return super().invoke(context)
        except (Interrupted, click.exceptions.Exit):
            raise
        except BaseException as error:
            if not _of_interruption(error):
                raise
            if context.invoked_subcommand in ("precompute", "train", "discover"):
                raise interrupted() from None
            raise Interrupted("interrupted") from None


def _of_interruption(error: BaseException) -> bool:
    """Whether it is an interruption, or the error of a library that one made fail: what a library
    cleans up when it is left halfway may raise an error of its own.
    """
    if isinstance(error, KeyboardInterrupt):
        return True  # click would print an empty line for it
    before = error.__cause__ or error.__context__
    return signals.pending() and before is not None and _of_interruption(before)


def _instead(error: click.ClickException) -> click.ClickException:
    """For an option that earlier versions had: what takes its place."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        retired = getattr(error.ctx.command.callback, "retired", {})
        name = error.option_name.lstrip("-").replace("-", "_")
        if name in retired:
            return click.UsageError(f"{error.option_name} {retired[name]}", ctx=error.ctx)
    return error


def _quiet_libraries(quiet: bool) -> None:
    """Silences what libraries print of their own; with `--quiet` their warnings as well, until the
    command ends.
    """
    from twcli.models import runtime

    runtime.quiet_transformers()
    if quiet:
        context = click.get_current_context()
        context.with_resource(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        context.call_on_close(partial(logging.disable, logging.root.manager.disable))
        logging.disable(logging.WARNING)


def _fail(line: str, code: int) -> int:
    """Prints one line to standard error and returns the exit code."""
    click.echo(" ".join(line.split()), err=True)
    return code


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(__version__, prog_name="twcli", message="%(prog)s %(version)s")
def main() -> None:
    """Turn an entangled language model into one with K discrete latent strategies.

    Exit codes: 0 done, 1 the work failed, 2 the call or an input is wrong,
    130 and 143 stopped by Ctrl-C and by SIGTERM.
    """
    signals.install()


@main.command(
    cls=GroupedCommand, short_help="Original model, once over the data: NLL b_t per token."
)
@config_options(PrecomputeConfig)
@dry_run_option
def precompute(config_file: str | None, quiet: bool, dry_run: bool, **flags: Any) -> None:
    """Score the data once with the original model: per-token NLL b_t in HDF5."""
    config = resolve(PrecomputeConfig, flags, config_file)
    with Screen(quiet) as screen:
        screen.phases.plan(REHEARSAL if dry_run else precompute_phases(config.precision))
        records = _read(config, screen)
        from twcli.commands.precompute import precompute as run

        _quiet_libraries(quiet)
        if dry_run:
            return _rehearse(config, flags, config_file, records, screen)
        run(config, screen.say, screen.progress, screen.phases, records)


def _read(config: Any, screen: Screen, y_field: str | None = "y", **also: Any) -> Examples:
    """Checks the model's name and every record, says what records there are, and begins the next
    phase: all before torch is imported, which takes seconds.

    Args:
        y_field: as `stream_examples` takes it; `also` likewise.

    Raises:
        UserError: the name or a record is wrong.
    """
    from twcli.data.dataset import stream_examples
    from twcli.storage import hub

    if getattr(config, "run", None) is not None:
        from twcli.storage.run_folder import RunFolder

        also["trained"] = RunFolder(config.run).read_fields()
    fields = {"format": config.format, "x_field": config.x_field, "empty": config.empty, **also}
    if y_field is None:
        fields.setdefault("y_field", None)
    else:
        fields |= {"y_field": config.y_field, "each_turn": config.each_turn}
    records = stream_examples(config.data, **fields)
    # for `sample --server` it is the name that the server knows it by, and nothing is loaded
    served = isinstance(config, SampleConfig) and config.server is not None
    if config.model is not None and not served:
        hub.look_for_model(config.model)
    with screen.progress(f"read {config.data}", 0):
        for _ in records:
            pass
    screen.phases.begin(DATA, records.summary())
    screen.say(f"then: {', '.join(screen.phases.coming)}")
    if not served:
        screen.phases.begin_next(getattr(config, "run", None) or config.model)
    return records


def _rehearse(
    config: PrecomputeConfig | TrainConfig,
    flags: dict[str, Any],
    config_file: str | None,
    records: Examples,
    screen: Screen,
) -> None:
    """Prints what `--dry-run` found, a line a fact."""
    from twcli.commands.rehearsal import rehearse

    for line in rehearse(config, origins(flags, config_file), records, screen.phases):
        if is_main_process():  # one process of a job says it for all
            screen.show(folded(line) + "\n")


@main.command(cls=GroupedCommand, short_help="A latent for each record, to look at and to edit.")
@config_options(DiscoverConfig)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def discover(config_file: str | None, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Find strategies in completions without labels: a latent for each record."""
    config = resolve(DiscoverConfig, flags, config_file)
    with Screen(quiet) as screen:
        screen.phases.plan(DISCOVER)
        records = _read(config, screen)
        from twcli.commands.discover import closing_line
        from twcli.commands.discover import discover as run
        from twcli.discovery.names_page import summary_lines
        from twcli.evaluation import report

        _quiet_libraries(quiet)
        summary = run(config, screen.say, screen.progress, screen.phases, records)
    if as_json:
        click.echo(report.to_json({k: v for k, v in summary.items() if k not in ("map",)}))
        return
    for line in summary_lines(summary):
        click.echo(line)
    screen.say(closing_line(summary))


@main.command(cls=GroupedCommand, short_help="Entangled model, data and b_t: a run folder.")
@config_options(TrainConfig)
@dry_run_option
def train(config_file: str | None, quiet: bool, dry_run: bool, **flags: Any) -> None:
    """Train router, generator and posterior with the exact sum over z."""
    config = resolve(TrainConfig, flags, config_file)
    with Screen(quiet) as screen:
        if config.seeds is None:
            seeds = 1
        else:
            seeds = len(config.each_seed())
        screen.phases.plan(REHEARSAL if dry_run else training_phases(config.warm_start, seeds))
        records = _read(config, screen)
        from twcli.commands.train import train as run

        _quiet_libraries(quiet)
        if dry_run:
            return _rehearse(config, flags, config_file, records, screen)
        with screen.training() as on_step:
            run(config, screen.say, screen.progress, on_step, screen.phases, records)


@main.command(
    cls=GroupedCommand, name="eval", short_help="Did it collapse? Does z mean a strategy?"
)
@config_options(EvalConfig)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--all", "everything", is_flag=True, help="Print the diagnostics as well.")
def evaluate(
    config_file: str | None, quiet: bool, as_json: bool, everything: bool, **flags: Any
) -> None:
    """Posterior usage, strategy alignment, accuracy and likelihood of a run."""
    config = resolve(EvalConfig, flags, config_file)
    from twcli.storage.run_folder import RunFolder

    with Screen(quiet) as screen:
        runs = len(RunFolder(config.run).several()) or 1
        screen.phases.plan(evaluation_phases(config.samples is not None, runs))
        records = _read(config, screen, strategy_field=config.strategy_field)
        from twcli.commands.evaluate import evaluate as run
        from twcli.evaluation import curves, report, several

        _quiet_libraries(quiet)
        result = run(config, screen.say, screen.progress, screen.phases, records)
    if as_json:
        click.echo(report.to_json(result))
    elif "runs" in result:
        _print(several.render_comparison(result))
    else:
        page = f"{config.run}/report.html"
        before, after = report.verdict_lines(result, page, everything)
        parts = [*before, "", report.render_table(result, everything)]
        if result["sampling"]:
            parts += ["", curves.render_sampling(result["sampling"])]
        _print(*parts, "", *after)


def _print(*parts: Any) -> None:
    """Texts and tables, no wider than the terminal, or 80 columns."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    for part in parts:
        console.print(part, markup=False)


@main.command(cls=GroupedCommand, short_help="Completions by the original model, or by latent.")
@config_options(SampleConfig)
def sample(config_file: str | None, quiet: bool, **flags: Any) -> None:
    """Draw completions: from the original model (to build data) or from a run."""
    config = resolve(SampleConfig, flags, config_file)
    with Screen(quiet) as screen:
        load = None  # a server has it
        if config.server is None:
            load = LOAD_MODEL if config.run is None else LOAD_RUN
        screen.phases.plan(sampling_phases(config.data is not None, load))
        records = None
        if config.data is not None:
            records = _read(config, screen, None)
        elif load is not None:
            screen.phases.begin(load, config.run or config.model or "")
        from twcli.commands.sample import Sampler
        from twcli.commands.sample import sample as run

        _quiet_libraries(quiet)
        if not config.interactive:
            return run(config, screen.say, screen.progress, screen.show, screen.phases, records)
        sampler = Sampler.load(config)
    _converse(sampler)


def _converse(sampler: Any) -> None:
    """Prompts from standard input until it ends or a line is empty; one that is no prompt is
    reported and skipped.

    Args:
        sampler: has `compare`, which gives the lines to print for a prompt.
    """
    stream = sys.stdin.buffer
    while True:
        if stream.isatty():
            click.echo("x> ", nl=False, err=True)
        line = stream.readline().strip()
        if not line:
            return
        try:
            x = line.decode("utf-8")
            check_characters(x, "x")
            click.echo("\n".join(sampler.compare(x)))
        except UnicodeDecodeError as error:
            click.echo(f"x: byte {error.start + 1} is not UTF-8", err=True)
        except UserError as error:
            click.echo(str(error), err=True)


@main.command(
    cls=GroupedCommand, short_help="A run as a model for transformers, servers, peft or llama.cpp."
)
@config_options(ExportConfig)
def export(config_file: str | None, quiet: bool, **flags: Any) -> None:
    """Write a run as a model that runs without this package.

    Its chat template takes the latent: apply_chat_template(messages, latent=2). Before it is done
    the folder is loaded again, and must give the prompts and the logits of the run.
    """
    config = resolve(ExportConfig, flags, config_file)
    with Screen(quiet) as screen:
        screen.phases.plan(EXPORT)
        screen.phases.begin(LOAD_RUN, config.run)
        from twcli.commands.export import export as run

        _quiet_libraries(quiet)
        run(config, screen.say, screen.phases)


@main.command(cls=GroupedCommand, short_help="What a cache or a run holds; is it intact?")
@click.argument("path", metavar="F.h5|RUN")
@click.option(
    "--verify",
    is_flag=True,
    help="Read everything and check every checksum; exit code 1 where one differs.",
)
@click.option(
    "--model",
    cls=GroupedOption,
    group=INPUTS,
    metavar="PATH",
    help="With --verify and --data: the model that a cache must be of; prints b_t of a few rows.",
)
@click.option(
    "--data",
    cls=GroupedOption,
    group=INPUTS,
    metavar="PATH",
    help="With --verify and --model: the records that a cache must be of.",
)
@click.option(
    "--each-turn",
    cls=GroupedOption,
    group=INPUTS,
    rare=True,
    is_flag=True,
    help="Make every assistant turn of a conversation an example, not only the last one.",
)
@click.option(
    "--format",
    cls=GroupedOption,
    group=INPUTS,
    type=click.Choice(FORMATS),
    default=AUTO,
    help=FORMAT_HELP.replace("the records", "--data") + "  [default: auto]",
)
@click.option(
    "--x-field",
    cls=GroupedOption,
    group=INPUTS,
    metavar="TEXT",
    default="x",
    help="Field of --data that holds the prompt.  [default: x]",
)
@click.option(
    "--y-field",
    cls=GroupedOption,
    group=INPUTS,
    metavar="TEXT",
    default="y",
    help="Field of --data that holds the completion.  [default: y]",
)
@click.option(
    "--template",
    cls=GroupedOption,
    group=INPUTS,
    metavar="FILE",
    help="The --template FILE that the cache was made with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def inspect(
    path: str,
    verify: bool,
    model: str | None,
    data: str | None,
    each_turn: bool,
    format: str,
    x_field: str,
    y_field: str,
    template: str | None,
    as_json: bool,
) -> None:
    """What a cache or a run folder holds, its provenance and its b_t profile."""
    from twcli.commands.inspection import inspect as run
    from twcli.evaluation import report

    if data is None and (x_field, y_field) != ("x", "y"):
        raise UserError(
            "--x-field and --y-field are of the records at --data; give --data or leave them out"
        )
    with Screen(quiet=model is None) as screen:  # nothing else is waited for
        if model is not None:
            screen.phases.plan((LOAD_MODEL,))
            screen.phases.begin(LOAD_MODEL, model)
            _quiet_libraries(False)
        found = run(
            path,
            verify=verify,
            model=model,
            data=data,
            each_turn=each_turn,
            format=format,
            x_field=x_field,
            y_field=y_field,
            template=template,
        )
    if as_json:
        lines = []
    else:
        lines = report.render_inspection(found).split("\n")
    # a text in colours keeps its line: the codes have no width
    lines = [line if "\x1b" in line else folded(line) for line in lines]
    click.echo(
        report.to_json(found) if as_json else "\n".join(lines),
        # else a terminal decides; click does not look
        color=False if os.environ.get("NO_COLOR") else None,
    )
    if found["problems"]:
        raise WorkFailed(f"{path}: damaged or of something else; {found['problems'][0]}")


@main.command(short_help="Versions, devices and caches, to paste into a bug report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def doctor(as_json: bool) -> None:
    """Report versions, devices, threads and cache folders, without private paths.

    Exit code 1 where a package that twcli needs is missing or too old, or a GPU is not found.
    """
    from twcli.commands.doctor import examine, render
    from twcli.evaluation import report

    found = examine()
    if as_json:
        click.echo(report.to_json(found))
    else:
        for line in render(found).split("\n"):
            click.echo(folded(line))
    if found["problems"]:
        raise WorkFailed(found["problems"][0])
