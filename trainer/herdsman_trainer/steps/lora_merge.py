"""LoRAMerge: a base and its adapters, in order, become one model."""

import logging

from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.lora_merge import HuggingFaceOutput
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.models import model_digest
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.weights.chain import Chain, open_chain
from herdsman_trainer.weights.merge import EMBEDDING, Replacement
from herdsman_trainer.weights.model_writing import write_chain
from herdsman_trainer.weights.tensor_spec import FLOAT_NAMES, dtype_name

log = logging.getLogger(__name__)


def run(config: LoRAMergeConfig, run: RunContext) -> Artifact:
    """Merge, write and publish.

    Raises BadInput where base, adapters and tokenizer do not belong together (weights.chain).
    """
    run.report(activity="checking the inputs")
    sources = [config.model, *config.adapters]
    model, *adapters = [open_input(source, config.verify_inputs) for source in sources]
    dtype = FLOAT_NAMES[config.dtype] if config.dtype else None
    chain = open_chain(model, adapters, dtype=dtype, digest_of=model_digest)
    for note in chain.notes:
        log.warning("%s", note)

    def announce(what: str, done: float) -> None:
        run.raise_if_stopped()
        run.report(activity=what, done=done)

    output = config.outputs.huggingface or HuggingFaceOutput()
    known = write_chain(chain, run.work_dir, max_shard_bytes=output.max_shard_mebibytes << 20, announce=announce)
    run.report(activity="publishing", done=1.0)
    digests = zip(sources, chain.digests, strict=True)
    return run.publish(
        kind="model",
        source_dir=run.work_dir,
        vocab_size=chain.merge.plan.vocab_size,
        tokenizer_digest=chain.tokenizer.digest,
        dtype=dtype_name(chain.merge.plan.tensors[EMBEDDING].spec.dtype),
        prompt_template=chain.prompt_template,
        inputs={source.field: digest for source, digest in digests if digest},
        report=_figures(chain),
        known=known,
    )


def _figures(chain: Chain) -> dict[str, float | str]:
    plan = chain.merge.plan
    changes = [tensor.changes for tensor in plan.tensors.values()]
    return {
        "tensors": len(changes),
        "tensors_with_lora": sum(any(not isinstance(change, Replacement) for change in each) for each in changes),
        "tensors_replaced": sum(any(isinstance(change, Replacement) for change in each) for each in changes),
        "tensors_unchanged": sum(not each for each in changes),
        "parameters": sum(tensor.spec.nbytes // tensor.spec.dtype.itemsize for tensor in plan.tensors.values()),
        "vocab_rows_added": plan.vocab_size - chain.model.weights.specs[EMBEDDING].shape[0],
        "tied_embeddings": str(plan.tied).lower(),
        "unchecked_origins": sum("only shapes" in note for note in chain.notes),
    }
