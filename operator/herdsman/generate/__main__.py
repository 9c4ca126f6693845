"""`python -m herdsman.generate [--check] [--root DIRECTORY]`: writes what follows from the API models, or compares."""

import argparse
import functools
import sys
from pathlib import Path

from herdsman.generate.chart import argocd_files, crd_templates, kustomize_files, rule_files
from herdsman.generate.crds import crd_files
from herdsman.generate.reference import reference_files


@functools.cache
def generated() -> dict[Path, dict[str, str]]:
    """Return every generated file: its directory relative to the project, its name, its text."""
    crds = crd_files()
    return {
        Path("crds"): crds,
        Path("docs/reference"): reference_files(),
        Path("charts/herdsman/templates/crds"): crd_templates(crds),
        Path("charts/herdsman/files"): rule_files(),
        Path("deploy/kustomize/crds"): kustomize_files(crds),
        Path("gitops/argocd/health"): argocd_files(),
    }


def differences(root: Path) -> list[str]:
    """Return one sentence for every file of the tree that is not as it would be generated."""
    found = []
    for directory, files in generated().items():
        for name, text in files.items():
            path = root / directory / name
            if not path.exists():
                found.append(f"{directory / name} is missing")
            elif path.read_text(encoding="utf-8") != text:
                found.append(f"{directory / name} differs from what the API models say")
        stray = {path.name for path in (root / directory).glob("*")} - set(files)
        found.extend(f"{directory / name} is not generated and does not belong here" for name in sorted(stray))
    return found


def write(root: Path) -> list[Path]:
    """Write every generated file, remove what is generated no longer, and return the paths that changed."""
    changed = []
    for directory, files in generated().items():
        (root / directory).mkdir(parents=True, exist_ok=True)
        for path in sorted((root / directory).glob("*")):
            if path.name not in files:
                path.unlink()
                changed.append(path)
        for name, text in files.items():
            path = root / directory / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                changed.append(path)
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m herdsman.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file differs")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's directory (default: here)")
    options = parser.parse_args(arguments)
    if not (options.root / "pyproject.toml").exists():
        parser.error(f"{options.root.resolve()} holds no pyproject.toml: run it in the project, or give --root")
    if options.check:
        lines = differences(options.root)
        remedy = ["run `make generate` and commit the result"] if lines else []
        sys.stderr.writelines(f"{line}\n" for line in lines + remedy)
        return 1 if lines else 0
    sys.stdout.writelines(f"wrote {path}\n" for path in write(options.root))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
