"""LoRAMerge: a base and its adapters, in order, become one model, in all the forms that are asked for."""

import json
import logging
from contextlib import closing
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import model_digest, open_input
from herdsman_trainer.free_space import require_space
from herdsman_trainer.ownership import check_attempt
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.weights.chain import Chain, open_chain
from herdsman_trainer.weights.merge import EMBEDDING, Replacement
from herdsman_trainer.weights.merge_check import check_changes, check_loads, tensor_digests
from herdsman_trainer.weights.merge_forms import HUGGINGFACE, in_file_order, open_sinks, write_beside
from herdsman_trainer.weights.merge_journal import Journal
from herdsman_trainer.weights.merge_pass import Merged, MergePass, take_up
from herdsman_trainer.weights.merge_probe import probe
from herdsman_trainer.weights.model_writing import result_config, write_description
from herdsman_trainer.weights.tensor_digests import DIGESTS_FILE
from herdsman_trainer.weights.tensor_spec import FLOAT_NAMES, dtype_name
from herdsman_trainer.weights.writing import write_tensor_digests

log = logging.getLogger(__name__)

JOURNAL = "merge.journal"
DECIDING = ("herdsman", "torch", "gguf", "libgguf", "cyllama")
"""Packages that the bytes of the result follow from; with another release a merge begins anew."""


def run(config: LoRAMergeConfig, run: RunContext) -> Artifact:
    """Merge, write and publish; a later attempt goes on where an earlier one was killed.

    Raises BadInput where base, adapters and tokenizer do not belong together (weights.chain), or a form cannot hold
    the result, and Temporary (DiskFull) where there is no room for it.
    """

    def announce(what: str, done: float) -> None:
        run.raise_if_stopped()
        check_attempt(run.workspace, config.attempt)
        run.report(activity=what, done=done)

    run.report(activity="checking the inputs")
    sources = [config.model, *config.adapters]
    directories = [open_input(source, config.verify_inputs) for source in sources]
    dtype = FLOAT_NAMES[config.dtype] if config.dtype else None
    chain = open_chain(directories[0], directories[1:], dtype=dtype, digest_of=model_digest)
    for note in chain.notes:
        log.warning("%s", note)
    result_config(chain)
    chain, shards = in_file_order(chain, config.outputs)

    matrix = open_input(config.importance_matrix) if config.importance_matrix is not None else None
    read = [*directories, *([matrix] if matrix is not None else [])]

    draft, journal = run.take_up_work_dir(), Journal(run.workspace / JOURNAL, _fingerprint(config, read))
    progress, open_files = take_up(draft, journal, announce)
    name, template = config.owner.name, config.template
    sinks = open_sinks(
        chain, shards, config.outputs, open_files, name=name, template=template, importance_matrix=matrix
    )
    written = sum(mark.bytes for marks in progress.marks.values() for mark in marks.values())
    require_space(draft, max(0, sum(sink.nbytes for sink in sinks.values()) - written), "the merged model")
    with closing(MergePass(chain.merge, sinks, journal, progress, announce)) as merge_pass:
        merged = merge_pass.run()

    run.report(activity="checking the result", done=1.0)
    still = check_changes(chain, merged.tensors)
    if still:
        log.warning("The adapters change %d tensors by less than rounding, such as %s.", len(still), still[0])
    write_description(chain, draft)
    write_beside(chain, config.outputs, draft, name=name, template=template)
    digests = write_tensor_digests(draft, tensor_digests(chain, merged.tensors))
    figures = {**_figures(chain, merged), "tensors_unmoved": len(still)}
    if HUGGINGFACE in sinks:
        check_loads(draft, chain)
        if (difference := probe(chain, draft)) is not None:
            figures["logits_against_peft"] = difference

    run.report(activity="publishing", done=1.0)
    known = zip(sources, chain.digests, strict=True)
    artifact = run.publish(
        kind="model",
        source_dir=draft,
        vocab_size=chain.merge.plan.vocab_size,
        tokenizer_digest=chain.tokenizer.digest,
        dtype=dtype_name(chain.merge.plan.tensors[EMBEDDING].spec.dtype),
        prompt_template=chain.prompt_template,
        formats=config.outputs.formats,
        inputs={source.field: digest for source, digest in known if digest},
        report=figures,
        known={**merged.files, DIGESTS_FILE: digests},
    )
    journal.remove()
    return artifact


def _fingerprint(config: LoRAMergeConfig, inputs: list[Path]) -> str:
    """Return a digest of all that the bytes of the result follow from."""
    asked = config.model_dump(mode="json", include={"outputs", "dtype", "template"})
    files = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for each in inputs
        for path in (each, *sorted(each.rglob("*")))
        if path.is_file()
    ]
    return sha256(
        json.dumps([asked, config.owner.name, files, [_release(name) for name in DECIDING]]).encode()
    ).hexdigest()


def _release(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _figures(chain: Chain, merged: Merged) -> dict[str, float | str]:
    plan = chain.merge.plan
    changes = [tensor.changes for tensor in plan.tensors.values()]
    return {
        "tensors": len(changes),
        "tensors_with_lora": sum(any(not isinstance(change, Replacement) for change in each) for each in changes),
        "tensors_replaced": sum(any(isinstance(change, Replacement) for change in each) for each in changes),
        "tensors_unchanged": sum(not each for each in changes),
        "tensors_taken_up": merged.taken_up,
        "parameters": sum(tensor.spec.nbytes // tensor.spec.dtype.itemsize for tensor in plan.tensors.values()),
        "vocab_rows_added": plan.vocab_size - chain.model.weights.specs[EMBEDDING].shape[0],
        "tied_embeddings": str(plan.tied).lower(),
        "unchecked_origins": sum("only shapes" in note for note in chain.notes),
    }
