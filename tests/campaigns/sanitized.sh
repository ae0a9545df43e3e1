#!/bin/sh
# Run Python on compiled code that AddressSanitizer and UndefinedBehaviorSanitizer watch:
#
#     tests/campaigns/sanitized.sh ARGS                    as python ARGS
#     PYTHON=python3.13 tests/campaigns/sanitized.sh ARGS  another interpreter, as in ./run
#
# A copy of the package is built in build/asan-* and imported from there; what ./run has built stays as it is. Every object
# comes from malloc() and next to no request from the free list, so that memory used after it was freed is noticed. The
# invariants that the code asserts are checked. Leaks are not looked for: an interpreter leaves much behind when it ends.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/../.."

./run setup
if [ -n "${PYTHON:-}" ]; then
    venv=${VENV:-.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
else
    venv=${VENV:-.venv}
fi
python=$PWD/$venv/bin/python
mkdir -p build
copy=$PWD/build/asan-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')

build() {
    mkdir -p "$copy"
    tar -c --exclude='*.so' --exclude=__pycache__ aioblk setup.py pyproject.toml README.md LICENSE | tar -x -C "$copy"
    [ ! -d .libblkio ] || ln -sfn "$PWD/.libblkio" "$copy/.libblkio"
    sanitize='-fsanitize=address,undefined -fno-sanitize-recover=undefined'
    (
        cd "$copy"
        CFLAGS="$sanitize -fno-omit-frame-pointer -g -O1 -DFREE_MAX=1 -UNDEBUG" LDFLAGS=$sanitize CC=gcc LDSHARED='gcc -shared' \
            "$python" setup.py -q build_ext --inplace
    )
}
# One at a time: another campaign may begin meanwhile.
{
    flock 9
    build
} 9>"$copy.lock"

# Where a module comes from is decided by PYTHONPATH alone: not by the current directory, which has the other build.
export PYTHONPATH="$copy" PYTHONSAFEPATH=1 PYTHONMALLOC=malloc
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
"$python" -c '
import sys
from aioblk._native import _core
sys.exit(not _core.__file__.startswith(sys.argv[1]) and f"{_core.__file__} is not the sanitized core")
' "$copy"
exec "$python" "$@"
