"""kubectl's own options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What kubectl's own options say."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    everywhere: bool = False
    """--all-namespaces"""

    @property
    def repeated(self) -> str:
        """The options as they are typed again in a command that is proposed."""
        given = {"--kubeconfig": self.kubeconfig, "--context": self.context, "-n": self.namespace}
        return "".join(f" {name} {value}" for name, value in given.items() if value)
