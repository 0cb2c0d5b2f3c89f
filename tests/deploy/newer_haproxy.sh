#!/bin/sh
# The HAProxy of Debian 13 (3.0) for the tests, beside the system's own: tests/deploy/newer_haproxy.sh FOLDER
# Debian only, by apt and from the mirror that the system names; nothing is installed. It runs by its own loader.
set -eu
release=trixie
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ ! -x "$folder/haproxy" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/*$')
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" > "$work/sources.list"
touch "$work/status"
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
    -o APT::Sandbox::User=root "$@"
}
apt update
apt install --yes --no-install-recommends --download-only haproxy
for package in "$work"/cache/archives/*.deb; do
  dpkg-deb --extract "$package" "$work/root"
done
rm -rf "$folder/root"
mv "$work/root" "$folder/root"
libraries=$(dirname "$folder"/root/usr/lib/*/ld-linux-*)
cat > "$folder/haproxy" <<END
#!/bin/sh
exec $libraries/$(basename "$libraries"/ld-linux-*) --library-path $libraries $folder/root/usr/sbin/haproxy "\$@"
END
chmod +x "$folder/haproxy"
"$folder/haproxy" -v
