"""TokenizerMerge: a base tokenizer, the SentencePiece models that are appended, and a sample to measure on."""

from collections.abc import Sequence

from herdsman.api.job_config import TokenizerMergeConfig
from herdsman.api.v1alpha1.status import Estimate
from herdsman.api.v1alpha1.tokenizer_merge import TokenizerMerge
from herdsman.core.estimate import Sketch
from herdsman.core.inputs import FILES, TOKENIZER, Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds.rules import RunKind
from herdsman.core.site import Site
from herdsman.core.world import World

BASE, SAMPLE = "spec.base", "spec.sample"
DISK_GIB = 0.01
"""A tokenizer's files take a few megabytes."""


def needs(resource: TokenizerMerge) -> Sequence[Need]:
    """Return the base, the sources in order, and the sample."""
    spec = resource.spec
    sources = [Need(f"spec.sources[{place}]", source, FILES) for place, source in enumerate(spec.sources)]
    sample = [Need(SAMPLE, spec.sample, FILES)] if spec.sample is not None else []
    return [Need(BASE, spec.base, TOKENIZER), *sources, *sample]


def config(resource: TokenizerMerge, frame: Frame, inputs: Inputs, site: Site) -> TokenizerMergeConfig:
    """Return the configuration of one attempt."""
    found = inputs.found
    return TokenizerMergeConfig(
        **frame.members(),
        base=found[BASE].to_input(site),
        sources=[entry.to_input(site) for entry in inputs.listed("spec.sources")],
        pad_token=resource.spec.pad_token,
        sample=found[SAMPLE].to_input(site) if SAMPLE in found else None,
    )


def sketch(_resource: TokenizerMerge, _world: World) -> Sketch:
    """Return a few megabytes of disk."""
    return Sketch(Estimate(disk_gib=DISK_GIB))


RULES = RunKind(needs=needs, estimate=sketch, config=config)
