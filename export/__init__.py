"""Turns a ChatTTS checkpoint into the artifacts of the model repository: `python -m export --help`."""
