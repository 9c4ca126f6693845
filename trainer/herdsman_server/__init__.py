"""What runs inside a server pod: the OpenAI API over a model and its adapters."""
