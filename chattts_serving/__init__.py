"""Serving code for ChatTTS on Triton Inference Server: everything that is not Triton glue lives here."""

import os

# ONNX Runtime's own builds keep an id of the machine below HOME and send it with events to their vendor. It reads this
# when it is imported, so it stands here, where everything of this project comes by before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
