"""The launcher's command: `python -m chattts_serving.server`; what it does is in chattts_serving.launcher.server."""

import sys

from chattts_serving.launcher.server import main

if __name__ == "__main__":
    sys.exit(main())
