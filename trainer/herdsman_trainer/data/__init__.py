"""The way from files to tokens: unpacking, cutting into pieces, worker processes, and what becomes of it all."""
