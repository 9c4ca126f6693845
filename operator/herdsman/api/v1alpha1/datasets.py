"""Datasets: files from a volume, a hub, a bucket or the web; for trainings one, or several mixed."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from herdsman.api.v1alpha1.remote_sources import REPOSITORY, FilePattern, HttpSource, HubSource, S3Source
from herdsman.api.v1alpha1.sources import DatasetRef, LocalName, RelativePath
from herdsman.api.v1alpha1.status import Digest


class HubDataset(HubSource):
    """A dataset repository of a model hub that speaks the Hugging Face API."""

    repository: str = Field(pattern=REPOSITORY, max_length=200)
    """Owner and name of the dataset: wikimedia/wikipedia."""
    files: list[FilePattern] = Field(default_factory=list, max_length=50)
    """Only files whose path matches one of these patterns; all files of a known form unless given."""


class DatasetSource(DatasetRef):
    """Files of a dataset, on a volume or elsewhere."""

    BESIDE: ClassVar[frozenset[str]] = frozenset({"sha256", "keep_downloads"})

    hub: HubDataset | None = None
    """A dataset of a model hub."""
    s3: S3Source | None = None
    """A directory of an S3 bucket, or one object."""
    http: HttpSource | None = None
    """Files behind URLs."""
    sha256: dict[RelativePath, Digest] = Field(default_factory=dict, max_length=200)
    """Expected SHA-256 of files of the dataset; a file that differs is refused."""
    keep_downloads: bool = True
    """Keeps what was downloaded on the workspace's volume, addressed by its content, when it is no longer needed."""


class MixedDataset(DatasetSource):
    """One dataset of a mixture."""

    BESIDE: ClassVar[frozenset[str]] = DatasetSource.BESIDE | {"weight"}

    weight: int | None = Field(default=None, ge=1, le=10000)
    """Its share of the sequences that are trained on, beside the weights of the others: 7 and 3 are 70 % and 30 %. Set
    it for all datasets or for none; without weights every sequence of every dataset is seen once an epoch."""


class InstructionDataset(DatasetSource):
    """Instruction records: of an InstructionSet, on a volume, or elsewhere."""

    instruction_set: LocalName | None = None
    """The name of an InstructionSet."""


class MixedInstructions(InstructionDataset, MixedDataset):
    """Instruction records, one dataset of a mixture."""


DATASET_RULES = (
    (
        "has(self.dataset) != (has(self.datasets) && size(self.datasets) > 0)",
        "set either dataset or datasets",
    ),
    (
        "!has(self.datasets) || self.datasets.all(d, has(d.weight)) || !self.datasets.exists(d, has(d.weight))",
        "set weight for all datasets or for none",
    ),
)


def dataset_problem(dataset: DatasetSource | None, datasets: Sequence[MixedDataset]) -> str | None:
    """Return which of the rules is broken, or None; the twin of DATASET_RULES."""
    if (dataset is not None) == bool(datasets):
        return DATASET_RULES[0][1]
    weights = [each.weight for each in datasets]
    if None in weights and any(weights):
        return DATASET_RULES[1][1]
    return None


def named_datasets(dataset: DatasetSource | None, datasets: Sequence[MixedDataset]) -> list[tuple[str, DatasetSource]]:
    """Return all datasets of a spec with the fields that name them: spec.dataset, or spec.datasets[0] and so on."""
    if dataset is not None:
        return [("spec.dataset", dataset)]
    return [(f"spec.datasets[{place}]", each) for place, each in enumerate(datasets)]
