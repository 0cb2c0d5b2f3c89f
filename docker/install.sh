#!/bin/sh
# Make the Python environment of this checkout: docker/install.sh FOLDER EXTRA[,EXTRA...]
# `make setup` and the images call it, so that both are the same packages in the same versions. PYTHON names the Python.
set -eu
unset PYTHONPATH # pip would take what lies there for installed; NVIDIA's image sets it
folder=$1
extras=$2
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
"$python" -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else "Python 3.10, 3.11 or 3.12 is \
needed, this is %s: say which one to take (make PYTHON=python3.11)" % sys.version.split()[0])'
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
  --editable ./client --editable ".[$extras]"
