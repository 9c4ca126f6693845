"""`herdsman`: the command line over the runs of one machine."""


def main() -> None:
    """Run the command line; what goes wrong is one sentence, and a traceback only with HERDSMAN_DEBUG=1."""
    from herdsman.cli.app import app
    from herdsman.cli.guard import guarded
    from herdsman.cli.refusals import refusal_of

    guarded(app, refusal_of, "herdsman")
