"""The kinds of the group, once: what they are called and which model describes them."""

from dataclasses import dataclass

from herdsman.api.v1alpha1.evaluation import Evaluation
from herdsman.api.v1alpha1.instruction_set import InstructionSet
from herdsman.api.v1alpha1.lora_merge import LoRAMerge
from herdsman.api.v1alpha1.model_import import ModelImport
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.sft_job import SFTJob
from herdsman.api.v1alpha1.tokenizer_merge import TokenizerMerge

AnyResource = (
    ModelImport | TokenizerMerge | PretrainJob | InstructionSet | SFTJob | LoRAMerge | Evaluation | ModelServer
)


@dataclass(frozen=True)
class KindInfo:
    """A kind's names."""

    model: type[AnyResource]
    plural: str
    short: str
    serves: bool = False
    """Whether it keeps running (a server) instead of finishing (a job)."""

    @property
    def kind(self) -> str:
        """The kind in CamelCase."""
        return self.model.KIND

    @property
    def singular(self) -> str:
        """The kind in lower case."""
        return self.kind.lower()


KINDS: dict[str, KindInfo] = {
    info.kind: info
    for info in (
        KindInfo(ModelImport, "modelimports", "mi"),
        KindInfo(TokenizerMerge, "tokenizermerges", "tm"),
        KindInfo(PretrainJob, "pretrainjobs", "pj"),
        KindInfo(InstructionSet, "instructionsets", "is"),
        KindInfo(SFTJob, "sftjobs", "sj"),
        KindInfo(LoRAMerge, "loramerges", "lm"),
        # Not ev: to kubectl that is an event of the core group.
        KindInfo(Evaluation, "evaluations", "eval"),
        KindInfo(ModelServer, "modelservers", "ms", serves=True),
    )
}
"""Every kind by its name, in the order of the pipeline."""

CATEGORY = "herdsman"
"""`kubectl get herdsman` lists them all."""
