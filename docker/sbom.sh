#!/bin/sh
# What is in an image, as CycloneDX: python.cdx.json and system.cdx.json in FOLDER. docker/sbom.sh ROOT FOLDER
# ROOT is the image's file system, PYTHON one of an environment with the extra `sbom`.
set -eu
root=$1 folder=$2
programs=$(dirname "${PYTHON:?}")
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# cyclonedx-py asks an interpreter where it looks for packages. The image's own would not run here.
for packages in "$root"/opt/chattts/.venv/lib/python3*/site-packages; do
  printf "#!/bin/sh\necho '%s'\n" "[\"$packages\", \"$root/opt/chattts\", \"$root/opt/chattts/client\"]" > "$work/python"
done
chmod +x "$work/python"
"$programs/cyclonedx-py" environment --pyproject "$root/opt/chattts/pyproject.toml" --mc-type application \
  --output-file "$folder/python.cdx.json" "$work/python"
of() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\).*/\1/p" "$root/etc/os-release"; }
"$programs/debsbom" generate --sbom-type cdx --root "$root" --distro-name "$(of NAME)" --distro-version "$(of VERSION_ID)" \
  --base-distro-vendor "$(of ID)" --out "$folder/system"
