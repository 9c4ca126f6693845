"""Trackers of experiments that a training reports to, beside its own log and metrics."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.remote_sources import HostUrl
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.secrets import SecretKeyRef, SecretName

_KEY = "set apiKey, or offline: true"
_ONE = "set token or credentialsSecret, not both"
TrackerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", min_length=1, max_length=128)]


class WandbTracker(ApiModel):
    """Weights & Biases."""

    model_config = ConfigDict(json_schema_extra=cel(("has(self.apiKey) || self.offline", _KEY)))

    project: TrackerName
    """The project; it is made where it is not there."""
    entity: TrackerName | None = None
    """The team or user; that of the key unless set."""
    base_url: HostUrl | None = None
    """A server of one's own; https://api.wandb.ai unless set."""
    api_key: SecretKeyRef | None = None
    """The key; with `herdsman run` the environment variable WANDB_API_KEY is taken instead."""
    offline: bool = False
    """Keeps the run in the workspace, directory wandb, for `wandb sync`, and asks no server."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.api_key is None and not self.offline:
            raise ValueError(_KEY)
        return self


class MlflowTracker(ApiModel):
    """MLflow."""

    model_config = ConfigDict(json_schema_extra=cel(("!(has(self.token) && has(self.credentialsSecret))", _ONE)))

    tracking_uri: HostUrl
    """The tracking server."""
    experiment: TrackerName
    """The experiment; it is made where it is not there."""
    token: SecretKeyRef | None = None
    """Sent as `Authorization: Bearer TOKEN`; with `herdsman run` the environment variable MLFLOW_TRACKING_TOKEN is
    taken instead."""
    credentials_secret: SecretName | None = None
    """A Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; with `herdsman run` the environment
    variables of these names are taken instead."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.token is not None and self.credentials_secret is not None:
            raise ValueError(_ONE)
        return self


class ReportTo(ApiModel):
    """Who hears of every step; a tracker that fails never holds up the training."""

    tensorboard: bool = True
    """Writes event files for TensorBoard into the workspace, directory tensorboard."""
    wandb: WandbTracker | None = None
    """Weights & Biases."""
    mlflow: MlflowTracker | None = None
    """MLflow."""
