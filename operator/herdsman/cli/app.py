"""The commands and their options; what they do is imported when they are called, so that --help answers at once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="herdsman",
    help="Adapts LLaMA-family models to a new language from manifests, on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=True,
)


class RunOutput(StrEnum):
    """How `run` tells what happens."""

    TEXT = "text"
    JSON = "json"


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


Home = Annotated[
    str | None,
    typer.Option("--home", metavar="DIRECTORY", help="Where runs and volumes are kept (HERDSMAN_HOME, or .herdsman)."),
]
Volumes = Annotated[
    list[str] | None,
    typer.Option("--volume", "-v", metavar="CLAIM=DIRECTORY", help="A directory of yours as a volume; repeatable."),
]
Cores = Annotated[int | None, typer.Option(min=1, help="Cores to use at most; all unless set.")]
Kind = Annotated[str, typer.Argument(metavar="KIND", help="A kind, its plural or its short name: pretrainjob, pj.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the resource.")]
SomeKind = Annotated[str | None, typer.Argument(metavar="[KIND", help="A kind, its plural or its short name.")]
SomeName = Annotated[str | None, typer.Argument(metavar="[NAME]]", help="The name of one resource.")]
Server = Annotated[str | None, typer.Argument(metavar="[SERVER]", help="The name of a ModelServer that is ready.")]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A server anywhere, instead of one of this home.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="A model of the server; its first unless set.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the likeliest token always.")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Draw from the likeliest with this share.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Draw from so many tokens; 0 from all.")]
RepetitionPenalty = Annotated[float | None, typer.Option("--repetition-penalty", min=0, max=10, help="1 is none.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="The most tokens of an answer.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same answer.")]


@app.command()
def run(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH...]", help="Manifests: files, or directories of *.yaml, *.yml and *.json."),
    ] = None,
    volume: Volumes = None,
    output: Annotated[
        RunOutput, typer.Option("--output", "-o", help="text, or one JSON object a line.")
    ] = RunOutput.TEXT,
    cores: Cores = None,
    home: Home = None,
) -> None:
    """Apply manifests and follow them until everything is final.

    Without PATH it goes on with everything that was applied before. Ctrl-C saves and stops; run again to go on.
    Exit code: 0 all is well, 1 something failed or was refused, 2 wrong manifests, 130 stopped.
    """
    from herdsman.cli.run import run_command

    raise typer.Exit(run_command(paths or [], volume or [], home, cores, as_json=output is RunOutput.JSON))


@app.command()
def plan(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Manifests: files or directories.")],
    volume: Volumes = None,
    output: Annotated[
        PlanOutput, typer.Option("--output", "-o", help="table, json or yaml (with all children).")
    ] = PlanOutput.TABLE,
    home: Home = None,
) -> None:
    """Say what would be made, what it would need and what is wrong; touch nothing.

    Inputs made by the same manifests are taken as if they had succeeded.
    """
    from herdsman.cli.plan import plan_command

    raise typer.Exit(plan_command(paths, volume or [], home, output.value))


@app.command()
def get(
    kind: SomeKind = None,
    name: SomeName = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="table, wide, json or yaml.")] = Output.TABLE,
    home: Home = None,
) -> None:
    """List resources and how they stand."""
    from herdsman.cli.get import get_command

    get_command(kind, name, home, output.value)


@app.command()
def describe(kind: Kind, name: Name, home: Home = None) -> None:
    """Tell everything about one resource: conditions, attempts, failure, results, history."""
    from herdsman.cli.describe import describe_command

    describe_command(kind, name, home)


@app.command()
def logs(
    kind: Kind,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the process ends.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="The pod, where a run has several.")] = 0,
    attempt: Annotated[int | None, typer.Option(min=1, help="The attempt; the newest unless set.")] = None,
    home: Home = None,
) -> None:
    """Print what a run or a server wrote."""
    from herdsman.cli.logs import logs_command

    logs_command(kind, name, home, follow=follow, rank=rank, attempt=attempt)


@app.command()
def stop(kind: SomeKind = None, name: SomeName = None, home: Home = None) -> None:
    """Stop everything of this home, or one resource, after saving. `herdsman run` goes on from there."""
    from herdsman.cli.stop import stop_command

    stop_command(kind, name, home)


@app.command()
def delete(
    kind: Kind,
    name: Name,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete what it wrote: checkpoints and artifact.")
    ] = False,
    home: Home = None,
) -> None:
    """Forget a resource and stop it; its files stay on the volume unless --purge."""
    from herdsman.cli.delete import delete_command

    delete_command(kind, name, home, purge=purge)


@app.command()
def chat(
    server: Server = None,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="One question, or a conversation.")] = None,
    url: Url = None,
    model: Model = None,
    system: System = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    home: Home = None,
) -> None:
    """Talk to a server; with --url the first argument is the prompt. A key is taken from HERDSMAN_API_KEY."""
    from herdsman.cli.chat import chat_command
    from herdsman.cli.chat_client import Sampling, find_client

    if url is not None and prompt is None:
        server, prompt = None, server
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
    chat_command(find_client(server, url, model, sampling, home), prompt, system)


@app.command()
def generate(
    input_path: Annotated[Path, typer.Option("--input", metavar="FILE", help="One instruction a line.")],
    server: Server = None,
    output_path: Annotated[
        Path, typer.Option("--output", metavar="FILE", help='A JSON list of {"Input": ..., "Output": ...}.')
    ] = Path("predictions.json"),
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the lines as they are, without a prompt template.")
    ] = False,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Lines asked at the same time.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    skip_errors: Annotated[bool, typer.Option("--skip-errors", help="Write null where there is no answer.")] = False,
    url: Url = None,
    model: Model = None,
    system: System = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    home: Home = None,
) -> None:
    """Answer every line of a file. Called again after a kill it asks only for what is missing.

    Exit code: 0 every line has an answer, 1 some have none or the server refuses, 2 wrong usage, 130 stopped.
    """
    from herdsman.cli.chat_client import Sampling, find_client
    from herdsman.cli.generate import generate_command

    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
    code = generate_command(
        find_client(server, url, model, sampling, home),
        input_path,
        output_path,
        system=system,
        raw=raw,
        parallel=parallel,
        overwrite=overwrite,
        skip_errors=skip_errors,
    )
    raise typer.Exit(code)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"herdsman {installed('herdsman')}")
