"""`make demo`: from nothing to a spoken sentence, through a real server, over gRPC and HTTP.

Exports the demo checkpoint, which says English sentences, when the model repository holds no artifacts yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from chattts_client import Speech, TTSClient, TTSError

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import RunningServer, running_server

REPOSITORY = Path("model_repository")
LOG = Path("build", "demo-server.log")
TEXT = "Good morning. It is 8:45 now. The train to London leaves in 20 minutes."
SPEAKER = "default"
SEED = 42
MAX_NEW_TOKENS = 384  # 8.2 s a sentence; a model with random weights does not always end by itself


def main() -> int:
    """Run the demo; the exit status for the shell."""
    parser = argparse.ArgumentParser(prog="python -m chattts_serving.demo", description="Speak one sentence.")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo.wav"), metavar="FILE")
    arguments = parser.parse_args()
    try:
        export_if_needed()
        LOG.parent.mkdir(exist_ok=True)
        LOG.unlink(missing_ok=True)
        with running_server(REPOSITORY, log_path=LOG) as server:
            spoken = _speak(server, arguments.text)
        print("server stopped")
        spoken.save(arguments.output)
    except (ConfigError, TTSError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"wrote {arguments.output}: {spoken.duration:.2f} s, {spoken.sample_rate} Hz, mono")
    return 0


def export_if_needed() -> None:
    """Have something to serve in the model repository.

    Raises:
        CalledProcessError: the export failed.
    """
    if not (REPOSITORY / "gpt_decoder" / "1" / "model.safetensors").exists():
        print("no artifacts in model_repository yet: exporting the demo checkpoint", flush=True)
        subprocess.run([sys.executable, "-m", "export", "--checkpoint", "demo"], check=True)


def _speak(server: RunningServer, text: str) -> Speech:
    """Say `text` over both protocols and tell what it took."""
    for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        with TTSClient(url, protocol) as client:  # type: ignore[arg-type]
            started = time.perf_counter()
            speech = client.synthesize(text, speaker=SPEAKER, seed=SEED, max_new_tokens=MAX_NEW_TOKENS)
            seconds = time.perf_counter() - started
        print(
            f"{protocol:4}  model=chattts  tokens={speech.num_tokens}  audio={speech.duration:.2f} s  "
            f"taken={seconds:.2f} s  RTF={seconds / speech.duration:.2f}",
            flush=True,
        )
    return speech


if __name__ == "__main__":
    sys.exit(main())
