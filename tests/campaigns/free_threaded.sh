#!/bin/sh
# Run the tests on a free-threaded CPython, which this builds from Debian's source package:
#
#     tests/campaigns/free_threaded.sh [ARGS]                     ARGS go to pytest
#     SANITIZE=thread tests/campaigns/free_threaded.sh [ARGS]     interpreter and aioblk watched by ThreadSanitizer
#     PACKAGE=python3.14 SUITE=forky DEBIAN_MIRROR=URL            which package (the default), and from where
#
# Where the mirror lacks the suite's own version, an older one of 3.14 is taken from its pool, and checked against its sum.
#
# The first run takes a quarter of an hour, later ones find the interpreter in build/free-threaded. It needs a C compiler and the
# headers of zlib, OpenSSL and libffi: zlib1g-dev, libssl-dev, libffi-dev.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/../.."

package=${PACKAGE:-python3.14} suite=${SUITE:-forky} sanitize=${SANITIZE:-}
work=$PWD/build/free-threaded
prefix=$work/$package${sanitize:+-$sanitize}
source=$work/source-$package
python=$prefix/bin/${package}t

# The package's source as its authors made it, by apt, with lists that are kept here and used for nothing else.
download() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$work/apt/sources.list"
    cat >"$work/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
    (
        export APT_CONFIG="$work/apt/apt.conf"
        cd "$work/apt"
        apt-get -q update
        apt-get -q source --download-only --only-source "$package"
    )
}

download_older() {
    file=python3.14_3.14.6.orig.tar.xz
    sum=143b1dddefaec3bd2e21e3b839b34a2b7fb9842272883c576420d605e9f30c63
    python3 -c 'import sys, urllib.request as r; r.urlretrieve(*sys.argv[1:])' \
        "${mirror%/}/pool/main/p/python3.14/$file" "$work/apt/$file"
    echo "$sum  $work/apt/$file" | sha256sum --check --quiet
}

# ThreadSanitizer of older compilers does not find its way through an address space laid out at random.
steady() { if [ -n "$sanitize" ]; then setarch -R "$@"; else "$@"; fi; }

build() {
    mirror=$(release/mirror)
    if [ -z "$(find "$work/apt" -maxdepth 1 -name "$package*.orig.tar.xz" -size +1M 2>/dev/null)" ]; then
        rm -f "$work/apt/$package"*.orig.tar.xz
        download || download_older
    fi
    rm -rf "$source" "$prefix"
    mkdir -p "$source"
    tar -x -f "$work/apt/$package"_*.orig.tar.xz -C "$source" --strip-components=1
    (
        cd "$source"
        ./configure -q --disable-gil ${sanitize:+--with-thread-sanitizer} --disable-test-modules --prefix="$prefix" \
            OPT='-DNDEBUG -g -O3 -Wall'
        steady make -s -j"$(nproc)"
        steady make -s install
    )
    "$python" -c 'import ctypes, ssl, zlib' # what pip and the tests need
    rm -rf "$source"
}

[ -x "$python" ] || build
VENV=$work/venv-$(basename "$prefix")
export PYTHON="$python" VENV
if [ -n "$sanitize" ]; then
    # In a copy: what ./run has built stays as it is. A new one: sources that have gone would be compiled as well.
    rm -rf "$work/project"
    mkdir -p "$work/project"
    git ls-files -z | tar -c --null -T - | tar -x -C "$work/project"
    [ ! -d .libblkio ] || ln -sfn "$PWD/.libblkio" "$work/project/.libblkio"
    cd "$work/project"
    export CFLAGS='-fsanitize=thread -g -O1' LDFLAGS=-fsanitize=thread CC=gcc LDSHARED='gcc -shared'
    log=$work/report
    export TSAN_OPTIONS="exitcode=0 log_path=$log"
    rm -f "$log".*
    steady ./run build
    # A core without the sanitizer has no races to report.
    core=$(find "$work/project/aioblk/_native" -name '_core.cpython-*t-*.so' -newer "$python")
    if ! nm -D "$core" | grep -q __tsan_read8; then
        echo "free_threaded.sh: $core was built without ThreadSanitizer" >&2
        exit 1
    fi
fi
status=0
# Watched, everything takes twenty times as long.
steady ./run test -p no:cacheprovider ${sanitize:+-o faulthandler_timeout=1800} "$@" || status=$?
if [ -n "$sanitize" ] && grep -l _core "$log".* 2>/dev/null; then
    echo "free_threaded.sh: ThreadSanitizer has reports that name aioblk's compiled part" >&2
    status=1
fi
exit $status
