"""Environment variables by which the launcher tells the models what holds for this run of the server."""

DRAIN_FILE = "CHATTTS_DRAIN_FILE"  # the file that appears when the server is about to end; beside it lies `room`
LEXICON = "CHATTTS_LEXICON"  # the file of words and how to say them, if there is one
LOG_REQUESTS = "CHATTTS_LOG_REQUESTS"  # 1 has the models log a line for each request
SERVER_VERSION = "TRITON_SERVER_VERSION"  # of tritonserver, "2.71.0"; set in NVIDIA's images, not by the launcher
TRACES_URL = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # where the models send spans; OpenTelemetry's own name
