"""Stands before the replicas of a ModelServer that may be scaled to zero (docs/decisions/0023).

It knows nothing of Kubernetes and changes nothing there. It passes requests on, holds those that come while no replica
answers, and says on a port of its own how many there are; the operator, which asks for that, scales.
"""
