"""The table of a plan for a cluster: what is made first."""

import io
import json

from rich.console import Console

from builders import CLUSTER, checked, finished, model_import, pretrain_job, world
from herdsman.cli.plan_table import dump_previews, print_previews
from herdsman.core.plan import plan
from herdsman.core.preview import Preview
from herdsman.core.references import key_of

ZH = pretrain_job("zh", compute={"gpusPerNode": 8})


def preview(resource):
    planned = plan(resource, world(finished(model_import())), CLUSTER)
    return Preview(key_of(resource), "created", planned, done=False, after=(), problems=(), wants=())


def table(resource):
    out = io.StringIO()
    print_previews(Console(file=out, width=200), [preview(resource)], "this cluster")
    return out.getvalue()


def test_a_training_on_gpus_makes_its_preflight_first():
    assert "Job pj-zh-1, a preflight without GPUs" in table(ZH)
    assert "preflight" not in table(checked(ZH))


def test_the_document_says_it_too(capsys):
    dump_previews([preview(ZH), preview(pretrain_job("cpu"))], "json")
    assert [entry["preflight"] for entry in json.loads(capsys.readouterr().out)] == [True, False]
