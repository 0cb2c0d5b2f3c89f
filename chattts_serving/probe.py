"""The probe's command: `python -m chattts_serving.probe`; what it does is in chattts_serving.launcher.probe."""

import sys

from chattts_serving.launcher.probe import main

if __name__ == "__main__":
    sys.exit(main())
