#!/bin/sh
# The packages that the project needs, without the project: a layer of an image that stays when the project's files change.
#   docker/packages.sh FOLDER EXTRA[,EXTRA...] MODULE[,MODULE...] [UNNEEDED...]
# MODULEs are what the image imports, and must be there in the end. UNNEEDED are packages that others ask for and no
# MODULE imports. The project is found beside FOLDER.
set -eu
unset PYTHONPATH # NVIDIA's image sets it, to the packages of another backend
folder=$1 extras=$2 modules=$3
shift 3
cd "$(dirname "$0")/.."
mkdir -p client/chattts_client
touch README.md LICENSE NOTICE client/README.md client/LICENSE # pyproject.toml names them
docker/install.sh "$folder" "$extras"
python=$folder/bin/python
"$python" -m pip uninstall --quiet --yes chattts-triton chattts-client "$@"
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD" "$PWD/client" > "$packages/chattts.pth"
# What nothing here reads: tests, and symbols, which are half of what is compiled. Not those of libraries that were
# patched to lie in NAME.libs, nor PyTorch's.
find "$packages" -type d -name tests -prune -exec rm -rf {} +
if command -v strip > /dev/null; then
  find "$packages" -name '*.so' -not -path '*.libs/*' -not -path '*/torch/*' -not -path '*/nvidia/*' -exec strip --strip-unneeded {} +
fi
# FFmpeg's encoders of video, a tenth of the gateway: nobody here encodes any, but its library is not loaded without.
for encoder in "$packages"/av.libs/libx264-* "$packages"/av.libs/libx265-* "$packages"/av.libs/libSvtAv1Enc-*; do
  [ -f "$encoder" ] || continue
  nm -D --undefined-only "$packages"/av.libs/libavcodec-* \
    | sed -n 's/^ *U \(\(x264\|x265\|svt\)_[a-z0-9_]*\)$/void *\1(void) { return 0; }/p' \
    | gcc -shared -x c -Wl,-soname,"${encoder##*/}" -o "$encoder" -
done
# Of nvidia-pytriton what serves other Pythons than this one.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for stub in "$packages"/pytriton/tritonserver/python_backend_stubs/3.*; do
  [ "${stub##*/}" = "$version" ] || rm -rf "$stub"
done
rm -f "$packages"/nvidia_pytriton.libs/libpython3-*
"$python" -c "import $modules"
