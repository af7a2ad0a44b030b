"""The commands. One per stage, and the only place that prints."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

# read by Flower and Ray when they are imported: no telemetry, no look-ups, no warnings of theirs
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import click
import typer
from rich.console import Console

from fedsim import __version__
from fedsim.errors import ConfigError, FedsimError, RunFailed

DONE, BAD_INPUT, RUN_FAILED, GATE_FAILED, INTERRUPTED = 0, 2, 3, 4, 130
"""Exit codes; `docs/commands.md` explains them."""

REFUSALS = ("client-failed", "client-refused", "no-reply", "update-rejected")
"""Events that a person should hear of at the end of a run."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train with Flower, eavesdrop, invert what was heard, report the leakage.",
)
errors = Console(stderr=True, highlight=False)

RunPath = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON; all else goes to stderr.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    pass


@app.command("run")
def run_command(
    experiment: Annotated[
        str | None, typer.Argument(help="An experiment file (TOML), or a shipped name.")
    ] = None,
    overrides: Sets = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this interrupted run directory.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, eavesdrop, attack beside it, score and report."""
    from fedsim import driver
    from fedsim.live import LiveTable

    if (experiment is None) == (resume is None):
        raise ConfigError("give either an experiment or --resume RUN")
    if resume is not None and overrides:
        raise ConfigError("--set has no place with --resume: a resumed run keeps its experiment")
    table = LiveTable(_console(as_json))
    try:
        with table:
            if resume is not None:
                result = driver.resume(resume, watch=table.watch)
            else:
                result = driver.run(str(experiment), overrides=overrides or (), watch=table.watch)
    except KeyboardInterrupt:
        if table.last is None:
            raise
        _end(
            "interrupted; what was recorded is kept: go on with "
            f"fedsim run --resume {table.last.run.root}",
            INTERRUPTED,
        )
    _conclude(result, as_json)


@app.command()
def deploy(
    experiment: Annotated[
        str, typer.Argument(help="An experiment file (TOML), or a shipped name.")
    ],
    overrides: Sets = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="SuperNodes, one per client; unset: as the file says.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP, and nodes without keys.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run on Flower's own processes on this machine: SuperLink, SuperNodes, TLS and keys."""
    more = ["engine.name=deployment"]
    more += [] if nodes is None else [f"partition.clients={nodes}"]
    more += ["engine.tls=false"] if insecure else []
    run_command(experiment, [*(overrides or ()), *more], None, as_json)


@app.command()
def attack(
    run: RunPath,
    again: Annotated[bool, typer.Option(help="Repeat attacks already made.")] = False,
    as_json: AsJson = False,
) -> None:
    """Attack what a run recorded, then score and report."""
    from fedsim import driver
    from fedsim.live import LiveTable

    with LiveTable(_console(as_json)) as table:
        result = driver.attack_again(run, watch=table.watch, again=again)
    _conclude(result, as_json)


@app.command()
def score(run: RunPath, as_json: AsJson = False) -> None:
    """Score every reconstruction of a run anew."""
    from fedsim import driver

    _conclude(driver.score_again(run), as_json)


@app.command()
def report(run: RunPath) -> None:
    """Write a run's report anew."""
    from fedsim.records import RunDirectory
    from fedsim.report.page import build

    typer.echo(build(RunDirectory.open(run)))


@app.command()
def watch(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run directory, or a folder of runs, of which the newest is shown.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Unset means 8321, or the next that is free."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name that the page is asked for by; may be repeated."),
    ] = None,
) -> None:
    """Show a run in a browser, as it happens; Ctrl-C ends it."""
    from fedsim.watch.server import exposed, serve

    if exposed(host):
        said = "whoever reaches this address, from other machines too, sees private images"
        errors.print(said, style="yellow", markup=False)
    if not run.exists():
        errors.print(f"'{run}' is not there yet: the page waits for it", markup=False)
    serve(run, host=host, port=port, names=allow_host or (), announce=typer.echo)


@app.command()
def tap(
    upstream: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink.")],
    run: Annotated[Path, typer.Option(help="Run directory, or the folder of one to come.")],
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME@]HOST:PORT", help="Where nodes reach it; may be repeated."),
    ] = None,
) -> None:
    """Stand between SuperNodes and SuperLink, hand every byte on, and listen."""
    from fedsim.proxy import command

    command.tap(listen or ["127.0.0.1:9092"], upstream, run, say=errors.print)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("compare.html"),
) -> None:
    """Put runs side by side in one page."""
    from fedsim.records import RunDirectory
    from fedsim.report.comparison import compare as build

    typer.echo(build([RunDirectory.open(path) for path in runs], output))


@app.command()
def gauge(
    experiment: Annotated[
        str, typer.Argument(help="An experiment file (TOML), or a shipped name.")
    ],
    overrides: Sets = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients to look at.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say in seconds, without a run, what updates could tell about their data."""
    from fedsim.config import read_experiment
    from fedsim.stages.gauge import gauge as examine
    from fedsim.tables import gauge_tables

    found = examine(read_experiment(experiment, overrides or ()), clients=clients)
    if as_json:
        typer.echo(json.dumps(found.record(), indent=1))
    else:
        _console(as_json=False).print(gauge_tables(found))


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(help="A sweep file (TOML), or a shipped name.")],
    overrides: Sets = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; unset means one per core.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; unset means sweeps/NAME.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="Run on a Ray cluster: local, auto, or HOST:PORT.")
    ] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print sweep.json; all else goes to stderr.")
    ] = False,
) -> None:
    """Run a grid of experiments: what each defense costs, what three attackers get."""
    from fedsim.sweep.bar import SweepBar
    from fedsim.sweep.config import read_sweep
    from fedsim.sweep.driver import run_sweep
    from fedsim.sweep.tables import markdown as as_markdown

    wanted = read_sweep(sweep, overrides or ())
    folder = output or Path("sweeps") / wanted.name
    try:
        with SweepBar(_console(as_json)) as bar:
            swept = run_sweep(
                wanted,
                folder,
                workers=workers or os.cpu_count() or 1,
                address=address,
                watch=bar.watch,
            )
    except KeyboardInterrupt:
        _end("interrupted; what ended is kept: the same command goes on with it", INTERRUPTED)
    if markdown is not None:
        markdown.write_text(as_markdown(swept.record))
    if as_json:
        typer.echo(swept.record.model_dump_json(indent=1))
    else:
        typer.echo(swept.page)
    if bad := [row.label for row in swept.record.cells if row.status != "done"]:
        said = f"{len(bad)} settings failed in part or whole, see the page: {', '.join(bad)}"
        errors.print(said, style="yellow", markup=False)


@app.command()
def gate(
    experiment: Annotated[
        str, typer.Argument(help="An experiment file (TOML), or a shipped name.")
    ],
    overrides: Sets = None,
    max_psnr: Annotated[
        float | None, typer.Option(help="No image may be recovered to so many dB.")
    ] = None,
    max_accuracy: Annotated[
        float | None,
        typer.Option(help="No text or row of a table may be recovered to such a share, 0 to 1."),
    ] = None,
    max_success_rate: Annotated[
        float | None,
        typer.Option(help="Share that may be recovered, to the experiment's own threshold."),
    ] = None,
    tolerate: Annotated[
        float,
        typer.Option(help="Share of updates that may, where --max-success-rate does not say."),
    ] = 0.05,
    confidence: Annotated[float, typer.Option(help="Of the claim, one-sided.")] = 0.95,
    victims: Annotated[
        int | None, typer.Option(help="Updates to attack; unset means as few as can prove it.")
    ] = None,
    attack: Annotated[
        str, typer.Option(help="An attack, by name or as the experiment calls it.")
    ] = "auto",
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds per update; unset means as the attack has it.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Attack processes; unset means one per core.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the verdict as JSON.")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML.")
    ] = None,
) -> None:
    """Attack fresh updates and end with code 0 or 4: for continuous integration."""
    from fedsim import gate as gating
    from fedsim.config import read_experiment
    from fedsim.files import replace_bytes, replace_json

    read = read_experiment(experiment, overrides or ())
    claim = gating.claim_of(
        read,
        max_psnr=max_psnr,
        max_accuracy=max_accuracy,
        max_success_rate=max_success_rate,
        tolerate=tolerate,
        confidence=confidence,
        victims=victims,
    )
    found = gating.gate(
        read,
        claim,
        attack=gating.attack_of(read, attack, time_budget),
        workers=workers or os.cpu_count() or 1,
        watch=lambda tally, planned: errors.print(
            f"{len(tally.scores)} of {planned} updates attacked, {tally.broken} broken"
        ),
    )
    if json_file is not None:
        replace_json(json_file, found.model_dump(mode="json"))
    if junit_file is not None:
        replace_bytes(junit_file, gating.junit(found))
    for line in gating.lines_of(found):
        typer.echo(line)
    if not found.passed:
        raise SystemExit(GATE_FAILED)


@app.command()
def topology(
    name: Annotated[
        str, typer.Argument(help="A graph of peers, by name or as package.module:Name.")
    ],
    peers: Annotated[int, typer.Option(min=2, help="Number of peers.")] = 16,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Of the graph; may be repeated."),
    ] = None,
    mixing: Annotated[str, typer.Option(help="Weights with which peers average.")] = "metropolis",
    seed: Annotated[int, typer.Option(help="Of graphs drawn at random.")] = 0,
    resample_every: Annotated[
        int | None, typer.Option(min=1, help="Draw anew after so many rounds; unset means never.")
    ] = None,
    server_round: Annotated[
        int, typer.Option("--round", min=1, help="Of a graph that changes.")
    ] = 1,
    draw: Annotated[
        Path | None, typer.Option(help="Draw it, into a file that ends with .png or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a graph of peers is like, and draw it."""
    from fedsim.report.graph import save_network
    from fedsim.tables import topology_table
    from fedsim.topologies.build import network_of_topology

    network = network_of_topology(
        name,
        num_peers=peers,
        options=options or (),
        mixing=mixing,
        seed=seed,
        resample_every=resample_every,
    )
    if draw is not None:
        save_network(network, server_round, draw)
    if as_json:
        typer.echo(json.dumps(network.record(server_round), indent=1))
    else:
        _console(as_json=False).print(topology_table(network, server_round))


@app.command("exposure")
def exposure_command(
    experiment: Annotated[
        str, typer.Argument(help="An experiment file (TOML), or a shipped name.")
    ],
    overrides: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say whose updates an adversary among peers can compute, before anything is trained."""
    from fedsim.config import read_experiment
    from fedsim.exposure import exposure
    from fedsim.tables import exposure_table

    found = exposure(read_experiment(experiment, overrides or ()))
    if as_json:
        typer.echo(json.dumps(found.record(), indent=1))
    else:
        _console(as_json=False).print(exposure_table(found))


@app.command("list")
def list_command(
    family: Annotated[
        str, typer.Argument(help="attacks, checks, tasks, models, engines, experiments, ...")
    ],
) -> None:
    """Print what there is, with one line each."""
    from fedsim.families import entries

    lines = entries(family)
    if not lines:
        typer.echo(f"there are no {family} in this version yet")
    width = max((len(name) for name, _ in lines), default=0)
    for name, line in lines:
        typer.echo(f"{name:<{width}}  {line}")


@app.command()
def schema() -> None:
    """Print the JSON schema of an experiment file."""
    from fedsim.config import schema as build

    typer.echo(json.dumps(build(), indent=2))


@app.command()
def doctor() -> None:
    """Check that this installation is whole."""
    from fedsim.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}")
    if not all(finding.ok for finding in findings):
        raise ConfigError("this installation is not whole; see the lines marked BAD")


def _console(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)


def _conclude(result: "driver.RunResult", as_json: bool) -> None:  # type: ignore[name-defined]  # noqa: F821
    from fedsim.records import RunDirectory
    from fedsim.report.run_view import RunView

    if as_json:
        typer.echo(json.dumps(result.summary, indent=1))
    else:
        typer.echo(result.report)
    if not result.summary["leakage"]:
        view = RunView(RunDirectory(result.directory))
        if view.kinds and not view.scores:  # attacks were asked for, and none was made
            errors.print(view.headline, style="yellow", markup=False, soft_wrap=True)
    if stuck := result.summary["rounds_without_update"]:
        said = f"{stuck} of {result.summary['rounds']} rounds changed nothing, see events.jsonl"
        errors.print(said, style="yellow", markup=False)
    refused = [event for event in result.events if event["kind"] in REFUSALS]
    if refused:
        said = f"{len(refused)} replies were refused, see events.jsonl; the last: "
        errors.print(said + refused[-1]["message"], style="yellow", markup=False)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Say what went wrong in one message, and end with the code that fits it."""
    try:
        yield
    except click.UsageError as error:
        error.show()
        raise SystemExit(BAD_INPUT) from None
    except OSError as error:
        _end(f"{error.filename or 'a file'}: {error.strerror or error}", BAD_INPUT)
    except RunFailed as error:
        _end(str(error), RUN_FAILED)
    except FedsimError as error:
        _end(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        _end("interrupted; what was recorded is kept: go on with fedsim run --resume", INTERRUPTED)


def _end(message: str, code: int) -> NoReturn:
    errors.print(message, style="red", markup=False, soft_wrap=True)
    raise SystemExit(code)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
    sys.path.insert(0, str(Path.cwd()))  # the user's own `package.module:Name` may lie here
    with _exit_codes():
        # the library turns Ctrl-C into its exit code, and hands that back
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt


if __name__ == "__main__":
    main()
