"""The `hanse` command: one word for what to do, a file, and key=value words that change it.

Every verb imports its room only when it is called, so that help and the list of runs come at once.
"""

import atexit
import difflib
import gc
import sys
import traceback
from typing import Annotated, Any

import click
import typer

from core.errors import MACHINE, HanseError, ResourceError
from core.printable import printable
from hanse.console import Console
from hanse.interrupt import INTERRUPTED

DEFECT, USAGE = 1, 2
atexit.register(gc.freeze)  # what is there at the end goes with the process: to collect it took a quarter of a second

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show the resolved config and what a step costs.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that out= names, where there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Warnings and the last lines only.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", hidden=True)]
Files = Annotated[list[str], typer.Argument(metavar="FILE...", hidden=True)]
File = Annotated[str, typer.Argument(metavar="FILE", hidden=True)]
OptionalFile = Annotated[str | None, typer.Argument(metavar="FILE", hidden=True)]
App = Annotated[str | None, typer.Option("--app", metavar="DIR", help="Run this Flower app in place of FILE.")]
Run = Annotated[str, typer.Argument(metavar="RUN", hidden=True)]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", hidden=True)]


class Verbs(typer.core.TyperGroup):
    """Commands in the order they are written, and a hint where one is misspelled."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"{ctx.command_path} {name}: no such command; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # which typer would end without a word
            raise click.Abort from None


def _typer(description: str) -> typer.Typer:
    return typer.Typer(
        cls=Verbs,
        help=description,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _typer("Train models where the data and the machines are.\n\nhanse VERB FILE key=value ...")
federate = _typer("Clients with data: simulate, partition, trees, statistics.")
runs = _typer("The runs kept here: list, show, compare, replay, remove.")
config = _typer("Config files: schema, show, validate.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hanse {version('hanse')}")
        raise typer.Exit


@app.callback()
def _hanse(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    file: File,
    words: Words = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a model here, on Ray, or on a cluster.

    \b
    hanse train configs/train/digits.yaml                      in this process
    hanse train configs/train/digits.yaml train.steps=100      with another value
    hanse train configs/train/digits.yaml workers=2            on two Ray workers
    hanse train configs/train/digits.yaml resume=RUN           where RUN was stopped
    hanse train configs/train/digits.yaml init=RUN             from the weights of RUN
    """
    from hanse.commands import train as command

    with Console.choose(json, quiet) as console:
        if dry_run:
            return command.dry_run(file, words or [], console)
        return command.run(file, words or [], console)


@app.command()
def evaluate(model: Model, words: Words = None, force: Force = False, json: Json = False, quiet: Quiet = False) -> int:
    """Score a model on held-out data, or on other data.

    \b
    MODEL is a run (its name, an unmistakable part of it, or `latest`) or a directory.
    hanse evaluate latest                                      on the test split
    hanse evaluate latest data.path=FILE                       on all of FILE
    hanse evaluate latest out=page.html                        as a page too
    """
    from hanse.commands import evaluate as command

    with Console.choose(json, quiet) as console:
        return command.run(model, words or [], force, console)


@app.command()
def predict(model: Model, words: Words = None, force: Force = False, json: Json = False, quiet: Quiet = False) -> int:
    """Predict every row of a file.

    \b
    MODEL is a run (its name, an unmistakable part of it, or `latest`) or a directory.
    hanse predict latest data.path=FILE                        onto the screen; - is standard input
    hanse predict latest data.path=FILE out=answers.csv        into a csv or jsonl file
    """
    from hanse.commands import predict as command

    with Console.choose(json, quiet) as console:
        return command.run(model, words or [], force, console)


@app.command()
def generate(model: Model, words: Words = None, json: Json = False, quiet: Quiet = False) -> int:
    """Continue a text with a language model.

    \b
    MODEL is a run (its name, an unmistakable part of it, or `latest`) or a directory.
    hanse generate latest prompt="The "                        also: max_new_tokens=
    temperature= (0: the likeliest) top_k= top_p= repetition_penalty= beams= seed= stop=
    """
    from hanse.commands import generate as command

    with Console.choose(json, quiet) as console:
        return command.run(model, words or [], console)


@federate.command("simulate")
def federate_simulate(
    file: OptionalFile = None,
    words: Words = None,
    app: Annotated[
        str | None, typer.Option("--app", metavar="DIR", help="Run this Flower app in place of FILE.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train over clients that keep their data, in rounds.

    \b
    hanse federate simulate configs/federate/digits.yaml                  in this process
    hanse federate simulate FILE engine=pool workers=2                    on two processes
    hanse federate simulate FILE engine=flower clients=2                  on a real Flower deployment
    hanse federate simulate FILE resume=RUN                               where RUN was stopped
    hanse federate simulate --app DIR clients=100 run_config.lr=0.1       any Flower app
    """
    given = [word for word in (file, *(words or [])) if word is not None]
    if app is None and file is None:
        raise click.UsageError("federate simulate: name a config file, or a Flower app with --app DIR")
    with Console.choose(json, quiet) as console:
        if app is not None:
            from hanse.commands import federate_app

            return federate_app.run(app, given, console)
        from hanse.commands import federate as command

        return command.run(str(file), words or [], console)


@federate.command("partition")
def federate_partition(file: File, words: Words = None, force: Force = False, json: Json = False) -> int:
    """Show who has how many examples of which label.

    \b
    hanse federate partition FILE partition.kind=dirichlet partition.alpha=0.1
    hanse federate partition FILE out=picture.svg
    """
    from hanse.commands import federate as command

    with Console.choose(json) as console:
        return command.partition(file, words or [], force, console)


@federate.command("trees")
def federate_trees(file: File, words: Words = None, json: Json = False, quiet: Quiet = False) -> int:
    """Grow boosted trees over clients that keep their rows.

    \b
    hanse federate trees configs/federate/trees.yaml                      every client grows, in each round
    hanse federate trees FILE trees.mode=cyclic trees.rounds=40           one client after the other
    hanse federate trees FILE engine=pool workers=2                       on two processes
    """
    from hanse.commands import federate as command

    with Console.choose(json, quiet) as console:
        return command.trees(file, words or [], console)


@federate.command("statistics")
def federate_statistics(file: File, words: Words = None, json: Json = False) -> int:
    """Describe the columns of a table that lies with clients.

    \b
    hanse federate statistics configs/federate/trees.yaml                 FILE: that of any federation of a table
    hanse federate statistics FILE quantiles=[0.25,0.5,0.75]              0.1, 0.5 and 0.9 unless said
    """
    from hanse.commands import federate as command

    with Console.choose(json) as console:
        return command.statistics(file, words or [], console)


@app.command()
def demo(json: Json = False, quiet: Quiet = False) -> int:
    """Learn digits here, then on two Ray workers, and compare."""
    from hanse.commands import demo as command

    return command.run(json, quiet)


@app.command()
def doctor(json: Json = False) -> int:
    """Check this machine: what works, what is in the way."""
    from hanse.commands.doctor import doctor as command

    return command(json)


@runs.command("list")
def runs_list(json: Json = False, quiet: Quiet = False) -> int:
    """All runs, the newest first."""
    from hanse.commands import runs as command

    with Console.choose(json, quiet) as console:
        return command.table(console)


@runs.command("show")
def runs_show(run: Run, json: Json = False, quiet: Quiet = False) -> int:
    """One run: how it ended, its numbers, where its files are."""
    from hanse.commands import runs as command

    with Console.choose(json, quiet) as console:
        return command.show(run, console)


@runs.command("compare")
def runs_compare(run: Runs, force: Force = False, json: Json = False, quiet: Quiet = False) -> int:
    """Runs side by side: where their configs differ, and their numbers.

    \b
    hanse runs compare RUN RUN                                 tables
    hanse runs compare RUN RUN out=table.csv                   the same, into a csv or jsonl file
    hanse runs compare RUN RUN out=page.html                   federations: curves over rounds, bytes, simulated time
    """
    from hanse.commands import runs as command

    with Console.choose(json, quiet) as console:
        return command.compare(run, force, console)


@runs.command("replay")
def runs_replay(
    run: Run,
    round: Annotated[int, typer.Option("--round", metavar="R", help="The round, counted from 1.")],
    client: Annotated[int, typer.Option("--client", metavar="K", help="The client's number.")],
    json: Json = False,
) -> int:
    """Do one client's work of a federation's round again, exactly."""
    from hanse.commands import replay as command

    with Console.choose(json) as console:
        return command.run(run, round, client, console)


@runs.command("remove")
def runs_remove(run: Runs, json: Json = False, quiet: Quiet = False) -> int:
    """Remove runs from the disk, for good. Each is named by its full name or path."""
    from hanse.commands import runs as command

    with Console.choose(json, quiet) as console:
        return command.remove(run, console)


@config.command("schema")
def config_schema(kind: Annotated[str, typer.Argument(metavar="[train|federate]", hidden=True)] = "train") -> int:
    """JSON Schema of a config file, for editors."""
    from hanse.commands import config as command

    return command.schema(kind, typer.echo)


@config.command("show")
def config_show(file: File, words: Words = None, json: Json = False) -> int:
    """What a config file comes to, with all defaults."""
    from hanse.commands import config as command

    with Console.choose(json) as console:
        return command.show(file, words or [], console)


@config.command("validate")
def config_validate(files: Files, json: Json = False) -> int:
    """Check config files; the exit code is 2 if one is wrong."""
    from hanse.commands import config as command

    with Console.choose(json) as console:
        return command.validate(files, console)


app.add_typer(federate, name="federate")
app.add_typer(runs, name="runs")
app.add_typer(config, name="config")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 2 config, 3 data, 4 resources, 5 a worker failed, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(20_000, 50, 50)  # torch's import makes a million objects that stay: a fifth of it was collecting
    try:
        return int(app(words, prog_name="hanse", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        return _say(error.format_message().rstrip("."), USAGE, words)
    except HanseError as error:
        return _say(str(error), error.exit_code, words)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED, words)
    except BrokenPipeError:  # `hanse runs list | head` has read enough
        sys.stdout = None
        return 0
    except OSError as error:
        if error.errno not in MACHINE:
            return _defect(error, words)
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror}; {MACHINE[error.errno]}", ResourceError.exit_code, words)
    except Exception as error:  # noqa: BLE001 - whatever else comes up is ours to mend
        return _defect(error, words)


def _say(message: str, exit_code: int, words: list[str]) -> int:
    message = message.removeprefix("hanse ")
    Console.choose(json="--json" in words, quiet=True).error(message, exit_code)
    return exit_code


def _defect(error: Exception, words: list[str]) -> int:
    sys.stderr.write(printable("".join(traceback.format_exception(error)), keep="\n"))
    said = f"{type(error).__name__}: {error}"
    return _say(f"{said}; this is a defect in Hanse, please report the lines above", DEFECT, words)
