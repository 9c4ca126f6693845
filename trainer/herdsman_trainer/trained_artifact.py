"""Publishes what was trained: an adapter, or a whole model for stage Full."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest, SFTConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.data.report import copy_report
from herdsman_trainer.lora import TrainedModel, write_trained_adapter
from herdsman_trainer.models import CONFIG_FILE
from herdsman_trainer.report import report_files
from herdsman_trainer.report.facts import RunFacts
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.run_start import settings
from herdsman_trainer.tokenizers import TextTokenizer, copy_tokenizer
from herdsman_trainer.training_inputs import TrainingInputs, TrainingJob, stage_of
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.model_writing import token_ids, write_json
from herdsman_trainer.weights.reading import open_model_weights, read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name
from herdsman_trainer.weights.vocabulary import main_dtype
from herdsman_trainer.weights.writing import write_model_weights

GENERATION_FILE = "generation_config.json"


def publish_trained(
    config: TrainingJob,
    context: RunContext,
    inputs: TrainingInputs,
    tokenizer: TextTokenizer,
    model: TrainedModel,
    values: Mapping[str, torch.Tensor],
    report: Mapping[str, float | str],
    *,
    data: Mapping[str, float | str],
    data_key: str,
    world_size: int,
) -> Artifact:
    """Write `values` of the trained parameters with the tokenizer's files, and publish them; for rank 0.

    An adapter's figures and matrices are float32, so that a later run goes on without rounding. It names the model as
    its base; an adapter that was continued is contained in it, so its parents are that one's. `data` are the figures of
    the data and `data_key` its digest, for the report.
    """
    full = stage_of(config) == "Full"
    draft = context.work_dir
    copy_tokenizer(inputs.tokenizer, draft)
    copy_report(context.workspace, draft)
    known: dict[str, FileDigest]
    if full:
        known, dtype = _write_model(draft, inputs.model, tokenizer, values)
    else:
        known, dtype = write_trained_adapter(draft, model, values), torch.float32
    rows = tokenizer.vocab_size if full or EMBEDDING in model.kept else None
    continued = read_manifest(inputs.adapter) if inputs.adapter else None
    return context.publish(
        kind="model" if full else "adapter",
        source_dir=draft,
        vocab_size=rows,
        tokenizer_digest=tokenizer.digest,
        base_digest=None if full else inputs.base_digest,
        parents=continued.artifact.parents if continued else (),
        dtype=dtype_name(dtype),
        prompt_template=config.recipe.template if isinstance(config, SFTConfig) else None,
        inputs=inputs.digests,
        report=report,
        known=known,
        pages=lambda artifact: report_files(
            run_facts(config, context, inputs, report, data=data, data_key=data_key, world_size=world_size), artifact
        ),
    )


def run_facts(
    config: TrainingJob,
    context: RunContext,
    inputs: TrainingInputs,
    report: Mapping[str, float | str],
    *,
    data: Mapping[str, float | str],
    data_key: str,
    world_size: int,
) -> RunFacts:
    """Return what the report tells."""
    given = [each for each in (config.model, config.adapter, config.tokenizer) if each is not None]
    rows = [(each.field, each.path, inputs.digests.get(each.field, "")) for each in given]
    if config.tokenizer is None:
        rows.append(("tokenizer", str(inputs.tokenizer), inputs.digests["spec.tokenizer"]))
    records = context.records
    return RunFacts(
        kind=config.owner.kind,
        name=config.owner.name,
        stage=stage_of(config),
        figures=report,
        inputs=[*rows, *((each.field, each.label, data_key) for each in config.datasets)],
        data=data,
        settings=settings(config, world_size),
        metrics=records.metrics.lines(),
        samples=records.samples.lines(),
        attempts=records.attempts.lines(),
    )


def _write_model(
    directory: Path, base: Path, tokenizer: TextTokenizer, values: Mapping[str, torch.Tensor]
) -> tuple[dict[str, FileDigest], torch.dtype]:
    """Write a Hugging Face model in the type of the base's weights, with the base's configuration."""
    with open_model_weights(base) as weights:
        dtype = main_dtype(weights.specs[EMBEDDING].dtype)

    def blocks(spec: TensorSpec) -> Iterator[torch.Tensor]:
        yield values[spec.name].detach().to("cpu", dtype)

    specs = [TensorSpec(name, dtype, tuple(value.shape)) for name, value in values.items()]
    known = write_model_weights(directory, specs, blocks)
    config = read_json_object(base / CONFIG_FILE)
    name = dtype_name(dtype)
    config |= {"vocab_size": values[EMBEDDING].shape[0], "dtype": name}
    if "torch_dtype" in config:
        config["torch_dtype"] = name
    write_json(directory / CONFIG_FILE, config)
    path = base / GENERATION_FILE
    generation = read_json_object(path) if path.is_file() else {}
    ids = token_ids(tokenizer, known_eos=generation.get("eos_token_id"))
    write_json(directory / GENERATION_FILE, {**generation, **ids})
    return known, dtype
