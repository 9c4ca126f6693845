"""One module per job kind; `run` reads top-down."""
