#!/bin/bash
# Build the cpu and gateway images from docker/Dockerfile, run them as they are meant to be run, and install the distributions in
# an empty container: `make images-check`.
#
# As root on Debian or Ubuntu with buildah, podman, runc and debootstrap (apt-get install). Where the machine forbids
# something of this, one line says what, and the status is 0. The base image is made of the machine's own mirror, so that
# no registry is needed. All it makes lies below one temporary folder and is removed; IMAGES_FOLDER keeps one for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
checkout=$PWD
python=${PYTHON:-.venv/bin/python}
key=sk-ci-$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
started=$SECONDS

say() { printf 'images-check %3d s: %s\n' $((SECONDS - started)) "$*"; }
skip() { echo "images-check skipped: $*"; exit 0; }

[ "$(id -u)" = 0 ] || skip "it wants root"
for program in buildah podman runc debootstrap; do
  command -v $program > /dev/null || skip "$program is not installed (apt-get install buildah podman runc debootstrap)"
done
work=${IMAGES_FOLDER:-$(mktemp -d /var/tmp/chattts-images.XXXXXX)}
mkdir -p "$work/temporary"
export TMPDIR=$work/temporary # buildah's, which writes each layer there first
containers=()
end() {
  status=$?
  [ $status = 0 ] || for one in "${containers[@]}"; do echo "== log of $one"; podman logs "$one" 2>&1 | tail -40; done
  podman rm --force --time 0 "${containers[@]}" > /dev/null 2>&1 || true
  if [ -z "${IMAGES_FOLDER:-}" ]; then
    podman system reset --force > /dev/null 2>&1 || true
    rm -rf "$work"
  fi
  exit $status
}
trap end EXIT

# The machine's limits: podman would ask for more where CAP_SYS_RESOURCE is missing, and crun refuses hybrid cgroups.
cat > "$work/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=32768:32768"]
[network]
network_backend = "netavark"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$work/libpod"
END
cat > "$work/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
END
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf

base=docker.io/library/debian:bookworm-slim
if ! podman image exists $base; then
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/*$') || skip "apt knows no Debian mirror"
  debootstrap --variant=minbase bookworm "$work/root" "$mirror" > "$work/debootstrap.log" 2>&1 \
    || skip "debootstrap: $(tail -1 "$work/debootstrap.log")"
  echo "deb $mirror bookworm main" > "$work/root/etc/apt/sources.list"
  # As the slim images are.
  printf 'path-exclude /usr/share/%s/*\n' doc man locale info > "$work/root/etc/dpkg/dpkg.cfg.d/slim"
  printf 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nDPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n' \
    > "$work/root/etc/apt/apt.conf.d/slim"
  rm -rf "$work"/root/usr/share/{doc,man,locale,info}/* "$work"/root/var/lib/apt/lists/* "$work"/root/var/cache/apt/* \
    "$work"/root/var/log/*
  tar -C "$work/root" --numeric-owner -c . | podman import - $base > "$work/import.log" 2>&1 \
    || skip "podman cannot import an image: $(tail -1 "$work/import.log")"
  rm -rf "$work/root"
  say "base image made"
fi

# The machine's certificates and index of packages, so that pip asks whom this machine asks.
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
echo '[global]' > "$work/pip.conf"
index=$($python -m pip config get global.index-url 2> /dev/null || true)
[ -z "$index" ] || echo "index-url = $index" >> "$work/pip.conf"
certificates=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
if [ -f "$certificates" ]; then
  echo 'cert = /etc/machine.crt' >> "$work/pip.conf"
  mounts+=(--volume "$certificates:/etc/machine.crt:ro")
fi
build() { # FOLDER TARGET
  (cd "$1" && buildah bud --runtime runc --layers --format docker --network host "${mounts[@]}" \
    -f docker/Dockerfile --target "$2" -t "chattts-triton:$2" .) > "$work/$2.log" 2>&1 \
    || { tail -30 "$work/$2.log"
         ! grep -q -i 'operation not permitted' "$work/$2.log" || skip "buildah may not build here"
         ! grep -q -i 'no space left on device' "$work/$2.log" || skip "the disk of $work is full (IMAGES_FOLDER names another place)"
         exit 1; }
}
megabytes() { podman image inspect "$1" --format '{{.Size}}' | awk '{ print int($1 / 1e6) }'; }
layers() { podman image inspect "chattts-triton:$1" --format '{{range .RootFS.Layers}}{{println .}}{{end}}'; }
for one in cpu:500 gateway:300; do
  build "$checkout" "${one%:*}"
  size=$(megabytes "chattts-triton:${one%:*}")
  say "${one%:*} has $size MB"
  [ "$size" -le "${one#*:}" ] || { echo "at most ${one#*:} MB are allowed"; exit 1; }
done

# What is in each image, and whether its own Python and dpkg say the same.
for one in cpu gateway; do
  root=$(podman image mount "chattts-triton:$one")
  PYTHON=$python docker/sbom.sh "$root" "build/sbom/$one" 2> "$work/sbom.log" || { tail "$work/sbom.log"; exit 1; }
  podman image unmount "chattts-triton:$one" > /dev/null
  ask() { podman run --rm --network none --no-healthcheck --entrypoint "$1" "chattts-triton:$one" "${@:2}"; }
  ask .venv/bin/python -c 'import importlib.metadata as m; print(*(f"{d.name} {d.version}" for d in m.distributions()), sep="\n")' \
    > "$work/python"
  ask dpkg-query --show --showformat '${Package} ${Version}\n' > "$work/system"
  $python - "build/sbom/$one" "$work" <<'END'
import json
import sys
from pathlib import Path

for kind in ("python", "system"):
    listed = json.loads(Path(sys.argv[1], f"{kind}.cdx.json").read_text())
    components = [*listed["components"], listed["metadata"]["component"]] if kind == "python" else listed["components"]
    found = {f"{one['name']} {one['version']}" for one in components if "arch=source" not in one.get("purl", "")}
    there = set(Path(sys.argv[2], kind).read_text().splitlines())
    assert found == there, (kind, found ^ there)
    print(f"{kind}: {len(found)} packages", end="; ")
END
  echo
  say "$one: the inventory is what its Python and dpkg say"
done

# A changed line: what is new of the layers.
mkdir -p "$work/changed"
git ls-files -z | xargs -0 cp --parents --no-dereference --preserve=timestamps --target-directory="$work/changed"
layers cpu > "$work/before"
cp "$work/changed/chattts_serving/errors.py" "$work/unchanged"
echo '# changed' >> "$work/changed/chattts_serving/errors.py"
build "$work/changed" cpu
mv "$work/unchanged" "$work/changed/chattts_serving/errors.py"
new=$(layers cpu | grep -v -x -F -f "$work/before" | wc -l)
size=$(podman history chattts-triton:cpu --format '{{.Size}}' \
  | awk '$1 > 0 { print int($1 * ($2 == "GB" ? 1000 : $2 == "MB" ? 1 : 0)) + 1; exit }') # the last layer that has any
say "a changed line makes $new new layers, of $size MB"
[ "$new" -le 1 ] && [ "$size" -le 20 ] || { echo "one layer of at most 20 MB is allowed"; exit 1; }
$python -m export --checkpoint demo --out "$work/models" > "$work/export.log" 2>&1 || { tail "$work/export.log"; exit 1; }
chmod -R a+rX "$work/models"
say "models exported"
ports() { $python -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))"; }
hard=(--read-only --cap-drop ALL --security-opt no-new-privileges --network host --health-interval disable)
serve() { # NAME, flags of podman
  name=$1
  shift
  read -r http grpc metrics web < <(ports)
  containers+=("$name-server" "$name-gateway")
  podman run --detach --name "$name-server" "${hard[@]}" "$@" --tmpfs /tmp:exec --shm-size 1g \
    --volume "$work/models:/models:ro" chattts-triton:cpu --http-port="$http" --grpc-port="$grpc" --metrics-port="$metrics" \
    --host=127.0.0.1 > /dev/null 2> "$work/run.log" || skip "podman cannot run a container: $(tail -1 "$work/run.log")"
  podman run --detach --name "$name-gateway" "${hard[@]}" "$@" --tmpfs /tmp --env "CHATTTS_API_KEYS=ci=$key" \
    chattts-triton:gateway --host=127.0.0.1 --triton="127.0.0.1:$grpc" --port="$web" > /dev/null 2>> "$work/run.log"
  for _ in $(seq 240); do
    ! $python -c "import gateway.process as p; exit(not p.answers('http://127.0.0.1:$web/health/ready'))" || break
    sleep 0.5
  done
  podman exec "$name-server" .venv/bin/python -m chattts_serving.probe --url "127.0.0.1:$http"
  $python - "http://127.0.0.1:$web/v1" "$key" <<'END'
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2])
for form, begins in {"wav": b"RIFF", "flac": b"fLaC", "opus": b"OggS", "mp3": b"", "aac": b"", "pcm": b""}.items():
    said = client.audio.speech.create(model="tts-1", voice="alloy", input="The weather is fine.", response_format=form).content
    assert said.startswith(begins) and len(said) > 5_000, (form, len(said))
try:
    openai.OpenAI(base_url=sys.argv[1], api_key="sk-of-nobody-at-all").models.list()
except openai.AuthenticationError:
    pass
else:
    sys.exit("a wrong key was let in")
END
  say "$name: healthy, and speaks to OpenAI's package"
  podman stop --time 20 "$name-gateway" "$name-server" > /dev/null 2>&1
  for one in server gateway; do
    status=$(podman inspect "$name-$one" --format '{{.State.ExitCode}}')
    [ "$status" = 0 ] || { echo "$name-$one ended with status $status"; exit 1; }
    # What lies in a mount is no part of it; podman makes the points to mount at.
    written=$(podman diff "$name-$one" | grep -v -E '^C /(etc|run|tmp|models|dev|proc|sys)?$|^[AC] /(etc/(hosts|resolv.conf|hostname|mtab)|run/\.containerenv|run/secrets|models|tmp|dev)$' || true)
    [ -z "$written" ] || { echo "$name-$one wrote: $written"; exit 1; }
  done
  say "$name: stopped with status 0, nothing written"
}
# The archive of the server's sources and the client's wheel, where there is nothing but a compiler.
build "$checkout" build
for one in . client; do
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) $python -m build --outdir "$work/dist" "$work/changed/$one" > "$work/dist.log" 2>&1 \
    || { tail "$work/dist.log"; exit 1; }
done
podman run --rm --network host "${mounts[@]}" --volume "$work/dist:/dist:ro" --volume "$checkout/constraints.txt:/constraints.txt:ro" \
  --shm-size 1g chattts-triton:build bash -euc '
cd /tmp
python3 -m venv venv
export PATH=/tmp/venv/bin:$PATH
pip install --quiet --constraint /constraints.txt --find-links /dist "$(echo /dist/chattts_triton-*.tar.gz)[embedded-cpu,onnx]" \
  /dist/chattts_client-*.whl
chattts-export --checkpoint demo
coproc chattts-server --http-port=0 --grpc-port=0 --metrics-port=0 2> server.log
read -r line <&"${COPROC[0]}" || { tail server.log; exit 1; }
grpc=${line#*grpc=}
chattts "Good morning." -o a.wav --url "${grpc%% *}"
kill "$COPROC_PID"
wait "$COPROC_PID"
test "$(stat --format %s a.wav)" -gt 10000
' > "$work/container.log" 2>&1 || { tail -30 "$work/container.log"; exit 1; }
say "the distributions speak in an empty container"

serve ci
serve random --user "$((100000 + RANDOM)):0"
say "done"
