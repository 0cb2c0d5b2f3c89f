"""Stands for `text_frontend`, whose configuration alone matters here."""


class TritonPythonModel:
    """Triton's entry point."""

    def execute(self, requests):
        """Nobody calls it."""
        raise NotImplementedError
