"""Turns a ChatTTS checkpoint into the artifacts of the model repository: `python -m export --help`."""

import chattts_serving  # noqa: F401 - before ONNX Runtime, which it tells to send nothing
