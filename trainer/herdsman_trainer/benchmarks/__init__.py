"""What an Evaluation does: text, questions and prompts put to models, figures with intervals, and a report."""
