"""What a training does about numbers that are not finite, and about a loss that runs away."""

from typing import Literal

from pydantic import Field

from herdsman.api.meta import ApiModel


class Divergence(ApiModel):
    """What happens to steps whose loss or gradient is not finite, and to a loss that runs away at the start.

    Steps that the loss scaling of fp16 skips are neither; it has limits of its own.
    """

    skip: int = Field(default=3, ge=0, le=1000)
    """Steps in a row that are passed over: the weights stay as they are, and the step's data is not learnt from."""
    rewinds: int = Field(default=1, ge=0, le=100)
    """How often, after one more such step, the run goes back to the newest checkpoint before them and on from there
    with other data, passing over all since; without a checkpoint, or once more than that, it ends as Diverged."""
    runaway: Literal["Fail", "Warn"] = "Fail"
    """What a loss that is far above its start during the warm-up does: Fail ends the run as Diverged, Warn only says
    so in the log."""
