"""SHELL A, Kubernetes: kopf brings the events, the client carries out the plans."""
