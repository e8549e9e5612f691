#!/bin/sh
# Build CPython from Debian's source package: a free-threaded one, which Debian does not package.
#
#     .github/build_python.sh 3.13 trixie "$HOME/py313t" --disable-gil
#
# Arguments: the version, Debian's release that has it, the prefix, options of ./configure.
# Needs apt, gcc, make and the headers of what the tests import: libffi-dev, libsqlite3-dev,
# libssl-dev, zlib1g-dev, and for the rest libbz2-dev and liblzma-dev. It changes nothing outside of
# the prefix. About 15 minutes of one core: it is not optimized with profiles, as it is for tests and
# not for measuring.
set -eu

version=$1 release=$2 prefix=$3
shift 3

# apt gets lists of its own, so the system's sources stay as they are.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user reads it
mkdir -p "$work/lists/partial"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keyring] http://deb.debian.org/debian $release main" > "$work/sources.list"
own() {
    "$@" -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$work/lists" -o APT::Sandbox::User=root
}

cd "$work"
own apt-get --quiet update
# Without Debian's patches: they move site-packages, and leave out pip.
own apt-get --quiet source --download-only "python$version/$release"
tar -xf python"$version"_*.orig.tar.xz
cd Python-"$version"*/
./configure --quiet --prefix="$prefix" --disable-test-modules "$@"
make --quiet --jobs="${JOBS:-2}"
make --quiet install > /dev/null
"$prefix/bin/python$version" -VV
