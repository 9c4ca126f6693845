"""What a disk may hold after a process was killed or the power was cut: recorded from real calls, then played out.

`Recorder` notes what a piece of code does to a directory: files written, names made, moved and removed, and what was
flushed. After a kill the kernel still has all of it. After a power cut a file has what was flushed of it, or anything
between that and what was written; and a directory has the names of its last flush, or of any moment since, as file
systems with a journal keep the order of changes within a directory and promise nothing between directories.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

Tree = dict[str, bytes | None]
"""Files by relative path with their content; None is a directory."""
Event = tuple
CALLS = ("mkdir", "rename", "replace", "link", "unlink", "remove", "rmdir", "fsync")
WITH_TARGET = ("rename", "replace", "link")


class Recorder:
    """Notes every change of a directory while it is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []
        self._known: Tree = {}
        self._original: dict[str, Callable] = {}

    def __enter__(self) -> "Recorder":
        self._known = tree_of(self.root)
        self.start = dict(self._known)
        for name in CALLS:
            self._original[name] = getattr(os, name)
            setattr(os, name, self._noting(name))
        return self

    def __exit__(self, *_) -> None:
        for name, function in self._original.items():
            setattr(os, name, function)
        self._note_data()

    def _noting(self, name: str) -> Callable:
        def function(path, *arguments, **options):
            self._note_data()
            source = self._relative(path, options.get("dir_fd"))
            target = self._relative(arguments[0]) if name in WITH_TARGET else None
            result = self._original[name](path, *arguments, **options)
            if source is not None:
                kind = {"replace": "rename", "remove": "unlink"}.get(name, name)
                self.events.append((kind, source, target) if target is not None else (kind, source))
                apply(self._known, self.events[-1])
            return result

        return function

    def _note_data(self) -> None:
        """Note files that were made or written since the last call: that happens without a call of its own."""
        for path, content in tree_of(self.root).items():
            if content is not None and self._known.get(path, b"-") != content:
                self.events.append(("data", path, content))
                self._known[path] = content

    def _relative(self, path, dir_fd=None) -> str | None:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        elif dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None


def tree_of(root: Path) -> Tree:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def write_tree(tree: Tree, root: Path) -> None:
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(content)


def apply(tree: Tree, event: Event) -> None:
    """Change the tree as the event did."""
    kind, path, *rest = event
    if kind == "data":
        tree[path] = rest[0]
    elif kind == "mkdir":
        tree[path] = None
    elif kind in ("unlink", "rmdir"):
        del tree[path]
    elif kind == "link":
        tree[rest[0]] = tree[path]
    elif kind == "rename":
        inside = [each for each in tree if each == path or each.startswith(f"{path}/")]
        moved = {rest[0] + each.removeprefix(path): tree.pop(each) for each in inside}
        tree.update(moved)


def after_kills(recorder: Recorder) -> Iterator[tuple[int, Tree]]:
    """Yield what a kill after each number of events leaves, also in the middle of writing a file."""
    tree = dict(recorder.start)
    yield 0, dict(tree)
    for count, event in enumerate(recorder.events, start=1):
        if event[0] == "data":
            for part in (0, len(event[2]) // 2):
                yield count - 1, {**tree, event[1]: event[2][:part]}
        apply(tree, event)
        yield count, dict(tree)


class _File:
    def __init__(self, content: bytes, durable: bytes | None) -> None:
        self.content, self.durable = content, durable

    def variants(self) -> list[bytes]:
        if self.durable == self.content:
            return [self.content]
        found = [self.durable or b"", self.content, self.content[: len(self.content) // 2], b"\0" * len(self.content)]
        return list(dict.fromkeys(found))


class _Directory:
    def __init__(self) -> None:
        self.entries: dict[str, _File | _Directory] = {}
        self.history: list[dict[str, _File | _Directory]] = [{}]
        """The names as they were flushed, and after every change since."""

    def note(self) -> None:
        self.history.append(dict(self.entries))

    def flush(self) -> None:
        self.history = [dict(self.entries)]


class Disk:
    """The same events, with what of them is on the disk for sure."""

    def __init__(self, start: Tree) -> None:
        self.top = _Directory()
        for path, content in sorted(start.items()):
            parent, name = self._place(path)
            parent.entries[name] = _Directory() if content is None else _File(content, content)
        for directory in self._directories(self.top):
            directory.flush()

    def apply(self, event: Event) -> None:
        kind, path, *rest = event
        parent, name = self._place(path) if path != "." else (self.top, "")
        if kind == "fsync":
            node = parent.entries[name] if name else self.top
            if isinstance(node, _Directory):
                node.flush()
            else:
                node.durable = node.content
        elif kind == "data":
            node = parent.entries.get(name)
            if isinstance(node, _File):
                node.content = rest[0]
            else:
                parent.entries[name] = _File(rest[0], None)
                parent.note()
        elif kind == "mkdir":
            parent.entries[name] = _Directory()
            parent.note()
        elif kind in ("rename", "link"):
            target, new_name = self._place(rest[0])
            assert target is parent, "only renames within a directory are modelled"
            parent.entries[new_name] = parent.entries[name] if kind == "link" else parent.entries.pop(name)
            parent.note()
        else:
            del parent.entries[name]
            parent.note()

    def after_a_power_cut(self) -> Iterator[Tree]:
        """Yield every tree that may be found: each directory at any moment since its flush, each file at any state."""
        yield from self._trees(self.top, "")

    def _trees(self, directory: _Directory, prefix: str) -> Iterator[Tree]:
        for entries in directory.history:
            parts = [list(self._node_trees(node, prefix + name)) for name, node in entries.items()]
            for chosen in itertools.product(*parts):
                yield {path: content for part in chosen for path, content in part.items()}

    def _node_trees(self, node: "_File | _Directory", path: str) -> Iterator[Tree]:
        if isinstance(node, _File):
            yield from ({path: content} for content in node.variants())
        else:
            yield from ({path: None, **tree} for tree in self._trees(node, f"{path}/"))

    def _place(self, path: str) -> tuple[_Directory, str]:
        *parents, name = path.split("/")
        directory = self.top
        for each in parents:
            below = directory.entries[each]
            assert isinstance(below, _Directory)
            directory = below
        return directory, name

    def _directories(self, directory: _Directory) -> Iterator[_Directory]:
        yield directory
        for node in directory.entries.values():
            if isinstance(node, _Directory):
                yield from self._directories(node)


def after_power_cuts(recorder: Recorder) -> Iterator[tuple[int, Tree]]:
    """Yield what a power cut after each number of events may leave, each tree once for a number."""
    disk = Disk(recorder.start)
    for count in range(len(recorder.events) + 1):
        if count:
            disk.apply(recorder.events[count - 1])
        seen: list[Tree] = []
        for tree in disk.after_a_power_cut():
            if tree not in seen:
                seen.append(tree)
                yield count, tree
