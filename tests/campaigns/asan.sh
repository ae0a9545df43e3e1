#!/bin/sh
# Run the tests on compiled code that AddressSanitizer and UndefinedBehaviorSanitizer watch, see sanitized.sh:
#
#     tests/campaigns/asan.sh [ARGS]                    ARGS go to pytest
set -eu
# The sanitizer turns mlock() into nothing.
exec "$(dirname -- "$0")/sanitized.sh" -m pytest -p no:cacheprovider --deselect tests/memory/test_arena.py::test_locked_memory \
    "$@"
