"""ROOM 2, decisions: pure functions over a snapshot; no I/O, no clock, no client."""
