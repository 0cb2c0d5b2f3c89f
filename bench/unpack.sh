#!/bin/sh
# Put a pack of `python -m bench pack` together, in the root of the checkout, without a network:
#   sh PACK/install.sh ENVIRONMENT [CHECKPOINT ...]
# makes the folder ENVIRONMENT, in which the server finds what it needs, the machine's own packages last, and
# build/repositories/NAME of the repository that came along. Each CHECKPOINT (synthetic, tiny, demo, a folder) is exported
# there too. PYTHON names the machine's Python 3.12; default python3. Exports and ChatTTS run in ENVIRONMENT/bin/bench-python.
set -eu
fail() { echo "install.sh: $*" >&2; exit 1; }
[ $# -ge 1 ] || fail "which folder shall the environment be in? sh PACK/install.sh ENVIRONMENT [CHECKPOINT ...]"
[ -d chattts_serving ] && [ -d client ] || fail "$PWD is not the root of the checkout"
unset PYTHONPATH # what lies there is for another Python
pack=$(cd "$(dirname "$0")" && pwd)
environment=$1
shift
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || fail "$python is not Python 3.12, which the wheels are for"
(cd "$pack" && sha256sum --check --quiet SHA256SUMS) || fail "pieces are missing or differ: bring them again"

# tritonserver embeds Python.
base=$python
if ! "$python" - <<'END'
import ctypes.util, os, sys, sysconfig
places = (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib")
found = any(place and os.path.exists(f"{place}/libpython3.12.so.1.0") for place in places)
sys.exit(not found and ctypes.util.find_library("python3.12") is None)
END
then
  [ -f "$pack/python.tar.xz.00" ] || fail "$python has no libpython3.12.so.1.0: pack again with --with-python"
  base=/$(cat "$pack"/python.tar.xz.* | tar --list --xz | grep 'bin/python3\.12$')
  [ -x "$base" ] || cat "$pack"/python.tar.xz.* | tar --extract --xz --directory=/
fi

machine=$("$python" -c 'import sys; print(":".join(path for path in sys.path if path.endswith("-packages")))')
"$base" -m venv --without-pip --clear "$environment"
environment=$(cd "$environment" && pwd)
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
cat "$pack"/wheels.tar.* | tar --extract --directory="$wheels"
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" "$wheels"/wheels/*.whl
cat "$pack"/tritonserver.tar.xz.* | tar --extract --xz --directory="$site"
# The models' processes take their packages from the environment, whatever PYTHONPATH says: a .pth file names the rest.
{
  printf '%s\n%s\n' "$PWD" "$PWD/client"
  echo "$machine" | tr : '\n'
} >"$site/machine.pth"
# What is no model heeds PYTHONPATH: with it, exports and ChatTTS find the NumPy that the machine's SciPy was made for.
cat >"$environment/bin/bench-python" <<END
#!/bin/sh
PYTHONPATH='$machine' exec '$environment/bin/python' "\$@"
END
chmod +x "$environment/bin/bench-python"
"$environment/bin/python" - "$site" <<'END'
import pathlib, sys, tomllib
projects = [tomllib.loads(pathlib.Path(folder, "pyproject.toml").read_text("utf-8")) for folder in (".", "client")]
version = projects[0]["project"]["version"]  # of both
for project in projects:  # commands ask for their version
    name = project["project"]["name"]
    target = pathlib.Path(sys.argv[1], f"{name.replace('-', '_')}-{version}.dist-info")
    target.mkdir()
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
END

mkdir -p build/repositories
cat "$pack"/repository.tar.xz.* | tar --extract --xz --directory=build/repositories
for checkpoint in "$@"; do
  "$environment/bin/bench-python" -m export --checkpoint "$checkpoint" --out "build/repositories/$(basename "$checkpoint")"
done
# An ONNX Runtime for CPUs cannot load models on a GPU.
if "$environment/bin/python" -c 'import onnxruntime as o, sys; sys.exit("CUDAExecutionProvider" in o.get_available_providers())'; then
  sed -i 's/KIND_AUTO/KIND_CPU/' build/repositories/*/dvae_*/config.pbtxt build/repositories/*/vocos/config.pbtxt
fi
"$environment/bin/python" - <<'END'
from importlib.metadata import version
import numpy, onnxruntime, safetensors, tokenizers, torch, tritonclient.grpc, wetext  # what is missing is said here
from chattts_serving.launcher.tritonserver import find_installation
find_installation()
names = ("chattts-triton", "torch", "numpy", "onnxruntime", "nvidia-pytriton")
print("ready:", ", ".join(f"{name} {version(name)}" for name in names))
END
echo "for example: $environment/bin/python -m bench server --repository build/repositories/NAME"
