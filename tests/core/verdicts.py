"""An Evaluation that met its thresholds and one that did not, and what tests of them ask."""

from builders import CLUSTER, done, evaluation, finished, lora_merge, model_import, with_status, world
from herdsman.api.v1alpha1.status import Metric
from herdsman.core.plan import plan
from herdsman.core.status import status

BASE, MERGED = finished(model_import()), finished(lora_merge())
QUALITY = evaluation("quality")


def report(**figures):
    return tuple(Metric(name=name, value=str(value)) for name, value in figures.items())


def reported(of, *others, jobs=(), server=None):
    seen = world(*others, jobs=jobs, server=server)
    return with_status(of, status(of, plan(of, seen, CLUSTER), seen))


def judged(of, **figures):
    """An Evaluation whose run is finished, with these figures."""
    return reported(of, BASE, MERGED, jobs=[done(of, report=report(**figures))])


def condition(of, kind):
    return next(entry for entry in of.status.conditions if entry.type == kind)


MET, MISSED = judged(QUALITY, threshold_0=11.9), judged(QUALITY, threshold_0=12.5)
