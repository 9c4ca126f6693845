"""Settings of all tests."""

import hypothesis

# The same examples on every machine, and no deadline: a shared machine may be slow without the code being wrong.
hypothesis.settings.register_profile("everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("everywhere")
