"""The measured policies and a question in, one of them with its evidence out."""
