"""`kubectl herdsman`: the command line against a cluster, as a plugin of kubectl."""


def main() -> None:
    """Run the command line; what goes wrong is one sentence, and a traceback only with HERDSMAN_DEBUG=1."""
    from herdsman.cli.guard import guarded
    from herdsman.kubectl.app import app
    from herdsman.kubectl.refusals import refusal_of

    guarded(lambda: app(prog_name="kubectl herdsman"), refusal_of, "kubectl herdsman")
