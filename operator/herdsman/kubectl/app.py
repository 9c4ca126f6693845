"""The commands and their options; what they do is imported when they are called, so that --help answers at once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from herdsman.kubectl.options import Options

app = typer.Typer(
    name="kubectl herdsman",
    help="Looks at Herdsman's resources in a cluster, stops and resumes runs, and says what a cluster lacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)


class Output(StrEnum):
    """How `get` prints."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


class PlanOutput(StrEnum):
    """How `plan` prints."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class DoctorOutput(StrEnum):
    """How `doctor` prints."""

    TABLE = "table"
    JSON = "json"


Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", metavar="FILE", help="The kubeconfig to use.")]
Context = Annotated[str | None, typer.Option("--context", metavar="NAME", help="A context of the kubeconfig.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="The namespace; the context's unless set.")
]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="In all namespaces.")]
Kind = Annotated[str, typer.Argument(metavar="KIND", help="A kind, its plural or its short name: pretrainjob, pj.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Its name; KIND/NAME is understood too.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="The names of the resources.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the operator says so.")]
Timeout = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long --wait waits.")]


@app.command()
def plan(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Manifests: files or directories.")],
    output: Annotated[
        PlanOutput, typer.Option("--output", "-o", help="table, json or yaml (with all children).")
    ] = PlanOutput.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say what the operator would make of manifests, what they need and what is wrong; touch nothing.

    Inputs made by the same manifests are taken as if they had succeeded; the API server is asked by dry run.
    """
    from herdsman.kubectl.finishing import finish
    from herdsman.kubectl.plan import plan_command

    raise typer.Exit(finish(plan_command(Options(kubeconfig, context, namespace), paths, output.value)))


@app.command()
def get(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND", help="A kind, plural or short name.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]]", help="The name of one resource.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="table, wide, json or yaml.")] = Output.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with what changes, until Ctrl-C.")] = False,
    everywhere: Everywhere = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List resources and how they stand."""
    from herdsman.kubectl.finishing import finish
    from herdsman.kubectl.get import get_command

    options = Options(kubeconfig, context, namespace, everywhere)
    finish(get_command(options, kind, name, output.value, watch=watch))


@app.command()
def describe(
    kind: Kind,
    name: Name = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell everything about one resource: conditions, attempts, failure, results, pods, volumes, Events."""
    from herdsman.kubectl.describe import describe_command
    from herdsman.kubectl.finishing import finish, split

    finish(describe_command(Options(kubeconfig, context, namespace), *split(kind, name)))


@app.command()
def logs(
    kind: Kind,
    name: Name = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, over restarts and new attempts, until the run is final.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="One pod of a run; all unless set.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="The attempt; the newest unless set.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, metavar="LINES", help="Only the last lines of each pod.")] = None,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="What a server's containers wrote before their last restart.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what the pods of a run or a server wrote, all of them, each line with its rank."""
    from herdsman.kubectl.finishing import finish, split
    from herdsman.kubectl.logs import Wanted, logs_command

    options, wanted = Options(kubeconfig, context, namespace), Wanted(rank, attempt, tail, previous)
    finish(logs_command(options, *split(kind, name), wanted, follow=follow))


@app.command()
def suspend(
    kind: Kind,
    names: Names,
    wait: Wait = False,
    timeout: Timeout = 1800,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Stop runs after saving; their GPUs are free then."""
    from herdsman.kubectl.finishing import finish
    from herdsman.kubectl.suspending import suspend_command

    options = Options(kubeconfig, context, namespace)
    raise typer.Exit(finish(suspend_command(options, kind, names, suspend=True, wait=wait, timeout=timeout)))


@app.command()
def resume(
    kind: Kind,
    names: Names,
    wait: Wait = False,
    timeout: Timeout = 1800,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Let suspended runs go on from their newest checkpoint."""
    from herdsman.kubectl.finishing import finish
    from herdsman.kubectl.suspending import suspend_command

    options = Options(kubeconfig, context, namespace)
    raise typer.Exit(finish(suspend_command(options, kind, names, suspend=False, wait=wait, timeout=timeout)))


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print once, as without a terminal.")] = False,
    everywhere: Everywhere = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show how all runs get on, live: step, loss, speed, GPUs, checkpoints."""
    from herdsman.kubectl.finishing import finish
    from herdsman.kubectl.top import top_command

    finish(top_command(Options(kubeconfig, context, namespace, everywhere), once=once))


@app.command()
def doctor(
    output: Annotated[DoctorOutput, typer.Option("--output", "-o", help="table or json.")] = DoctorOutput.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say what is missing in this cluster, and what to do about it; exit code 1 where runs do not work here."""
    from herdsman.kubectl.doctor import doctor_command
    from herdsman.kubectl.finishing import finish

    raise typer.Exit(finish(doctor_command(Options(kubeconfig, context, namespace), output.value)))


@app.command()
def version() -> None:
    """Print the version of this plugin; `doctor` also tells the operator's."""
    from importlib.metadata import version as installed

    typer.echo(f"kubectl herdsman {installed('herdsman')}")
