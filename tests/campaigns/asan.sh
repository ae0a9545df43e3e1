#!/bin/sh
# Run the tests on compiled code that AddressSanitizer and UndefinedBehaviorSanitizer watch, see sanitized.sh:
#
#     tests/campaigns/asan.sh [ARGS]                    ARGS go to pytest
set -eu
# The sanitizer turns mlock() into nothing, and stands where the fault injector would.
exec "$(dirname -- "$0")/sanitized.sh" -m pytest -p no:cacheprovider --deselect tests/test_arena.py::test_locked_memory \
    --ignore tests/faults "$@"
