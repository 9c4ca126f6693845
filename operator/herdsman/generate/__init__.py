"""Pure writers: custom resource definitions and reference pages, from the API models."""
