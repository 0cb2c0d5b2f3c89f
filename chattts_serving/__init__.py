"""Serving code for ChatTTS on Triton Inference Server: everything that is not Triton glue lives here."""
