"""What spec.reportTo asks of a training's pod: keys from Secrets in the environment, all else in the configuration."""

import pytest

from builders import CLUSTER, finished, model_import, pretrain_job, sft_job, world
from herdsman.api.job_config import RUN_CONFIG
from herdsman.core.plan import plan

OFFLINE = {"name": "HF_HUB_OFFLINE", "value": "1"}
WANDB = {"project": "zh", "apiKey": {"name": "trackers", "key": "wandb"}}
MLFLOW = {"trackingUri": "https://mlflow.example.com", "experiment": "zh"}


def secret(variable, name, key):
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def planned(resource):
    made = plan(resource, world(finished(model_import())), CLUSTER)
    children = {child["kind"]: child for child in made.children}
    (container,) = children["Job"]["spec"]["template"]["spec"]["containers"]
    return container["env"], RUN_CONFIG.validate_json(children["ConfigMap"]["data"]["job.json"])


ENVIRONMENTS = {
    "nothing beside TensorBoard": ({}, []),
    "Weights & Biases": ({"wandb": WANDB}, [secret("WANDB_API_KEY", "trackers", "wandb")]),
    "Weights & Biases offline": ({"wandb": {"project": "zh", "offline": True}}, []),
    "MLflow without a key": ({"mlflow": MLFLOW}, []),
    "MLflow with a token": (
        {"mlflow": {**MLFLOW, "token": {"name": "trackers", "key": "mlflow"}}},
        [secret("MLFLOW_TRACKING_TOKEN", "trackers", "mlflow")],
    ),
    "MLflow with a password": (
        {"mlflow": {**MLFLOW, "credentialsSecret": "mlflow"}},
        [secret(name, "mlflow", name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")],
    ),
}


@pytest.mark.parametrize("kind", [pretrain_job, sft_job])
@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_keys_are_named_and_never_copied(kind, what):
    report_to, keys = ENVIRONMENTS[what]
    environment, config = planned(kind(reportTo=report_to))
    assert environment == [OFFLINE, *keys]
    assert config.report_to.tensorboard
    told = config.report_to.to_json()
    assert {name: told.get(name) for name in report_to} == {
        name: {"offline": False, **settings} if name == "wandb" else settings for name, settings in report_to.items()
    }
