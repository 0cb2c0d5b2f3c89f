#!/bin/sh
# What an image needs of the project beside its files: the C library, the metadata, and compiled Python. docker/own.sh
set -eu
unset PYTHONPATH
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'setuptools>=77'
"$work/venv/bin/python" setup.py --quiet build_ext --inplace --build-temp "$work/build" egg_info
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/client" ./client
mv "$work"/client/chattts_client-*.dist-info client/
"$work/venv/bin/python" -m compileall -q .
rm -rf build
