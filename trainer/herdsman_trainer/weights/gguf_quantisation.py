"""Rounds rows of float32 to the types of GGUF, as llama.cpp itself does, with or without an importance matrix."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.gguf_types import FLOATS, block_size
from herdsman_trainer.weights.tensor_spec import tensor_bytes

Importance = Mapping[str, "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"]
"""By GGUF name of a matrix, how much each of its columns matters: mean squares of what a text brings there."""

THREADS = torch.get_num_threads()
"""Threads that rows are shared out among: the cores of this process. A merge sets torch's own to one."""
PARALLEL_VALUES = 1 << 18
"""The smallest block whose rows are shared out among threads."""
FLOAT16_MAX = torch.finfo(torch.float16).max
_RARELY_SAMPLED = ("token_embd.weight", "output.weight")
"""What llama-imatrix leaves out unless told otherwise."""


def check_values(name: str, block: torch.Tensor, kind: GGMLQuantizationType) -> None:
    """Raise BadInput where a value is no number, or larger than the type can hold."""
    low, high = (float(value) for value in torch.aminmax(block))
    largest = max(-low, high)
    if not largest <= torch.finfo(torch.float32).max:  # false for NaN too
        hint = "The weights are damaged, or the training diverged: use an earlier checkpoint or copy the model again."
        raise BadInput(f"{name} holds a value that is not a finite number.", hint=hint)
    if kind == GGMLQuantizationType.F16 and largest > FLOAT16_MAX:
        hint = "Choose BF16 or F32 in spec.outputs.gguf."
        raise BadInput(f"{name} holds {largest:.6g}, and F16 ends at {FLOAT16_MAX:.0f}.", hint=hint)


def quantise(block: torch.Tensor, kind: GGMLQuantizationType, importance: Any | None = None) -> memoryview:
    """Return the stored bytes of rows; `importance` has one float32 for each column.

    libgguf wraps the functions of llama.cpp. Where it is not installed, ggml's Python package computes the same bytes
    for the types it knows.
    """
    if kind in FLOATS:
        target = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind.name]
        return tensor_bytes(block.to(target))
    rows: Any = block.to(torch.float32).contiguous().numpy()
    library = _libgguf()
    if library is None:
        return memoryview(gguf.quants.quantize(rows, kind))
    stored: Any = numpy.empty((len(rows), library.row_size(kind, rows.shape[1])), dtype=numpy.uint8)

    def encode(part: slice) -> None:
        count, width = rows[part].shape
        library.quantize_rows_into_raw(kind, rows[part], stored[part], count, width, importance)

    parts = _parts(len(rows), rows.size)
    if len(parts) == 1:
        encode(parts[0])
    else:
        list(_workers().map(encode, parts))
    return memoryview(stored)


def _parts(rows: int, values: int) -> list[slice]:
    """Cut rows into one part for each thread, where the search for scales takes longer than the cutting."""
    count = min(THREADS, rows) if values >= PARALLEL_VALUES else 1
    edges = [rows * place // count for place in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


@cache
def _workers() -> ThreadPoolExecutor:
    """Return threads for rows; the library leaves the interpreter alone while it works."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="quantise")


def check_library(kinds: Iterable[GGMLQuantizationType], *, weighted: bool) -> None:
    """Raise BadInput where types or an importance matrix are asked for that only libgguf can compute."""
    if _libgguf() is not None:
        return
    needed = sorted({kind.name for kind in kinds if block_size(kind) > 32})
    if needed or weighted:
        what = f"{' and '.join(needed)} matrices" if needed else "Matrices with an importance matrix"
        hint = (
            "Install it (pip install libgguf; there are builds for Linux and Python 3.11 to 3.13), or choose Q8_0, "
            "F16, BF16 or F32 in spec.outputs.gguf: the smaller types store the head as Q6_K."
        )
        raise BadInput(f"{what} are computed by libgguf, which is not installed.", file="spec.outputs.gguf", hint=hint)


def read_importance(path: Path, widths: Mapping[str, int]) -> Importance:
    """Read the file of llama-imatrix, in its GGUF form or the older one, for matrices with rows of these widths.

    Raises BadInput where it is no such file, where a matrix of a layer is missing from it, or where it counts other
    columns: then it was made for another model. Embedding and head may be missing.
    """
    library = _libgguf()
    hint = "Make it with llama-imatrix from the F16 or F32 file of this very model."
    if library is None:
        check_library((), weighted=True)
    assert library is not None
    try:
        entries: Importance = library.load_imatrix(path)
    except (OSError, ValueError, OverflowError, MemoryError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"This is not a readable importance matrix: {why}.", file=str(path), hint=hint) from error
    missing = sorted(name for name in widths if name not in entries and name not in _RARELY_SAMPLED)
    if missing:
        message = f"The importance matrix lacks {len(missing)} of {len(widths)} matrices, such as {missing[0]}."
        raise BadInput(message, file=str(path), hint=hint)
    for name, width in widths.items():
        values = entries.get(name)
        if values is not None and values.size != width:
            message = f"The importance matrix has {values.size} columns for {name}, and the model has {width}."
            raise BadInput(message, file=str(path), hint=hint)
        if values is not None and not (numpy.isfinite(values).all() and (values >= 0).all()):
            message = f"The importance matrix holds values for {name} that are negative or not numbers."
            raise BadInput(message, file=str(path), hint=hint)
    return {name: entries[name] for name in widths if name in entries}


@cache
def _libgguf() -> Any | None:
    try:
        return import_module("libgguf")
    except ImportError:
        return None
