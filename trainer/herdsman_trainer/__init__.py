"""ROOM 3, what runs inside a job pod: reads a configuration, works on the volume, ends with a known exit code."""
