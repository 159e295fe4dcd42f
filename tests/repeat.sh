#!/usr/bin/env bash
# Repeat the multi-process tests and count the rounds that failed: tests/repeat.sh [ROUNDS=20] [pytest's arguments ...]
set -uo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-20}
failed=0
for ((round = 1; round <= rounds; round++)); do
    "${PYTHON:-.venv/bin/python}" -m pytest -m "multiprocess and not slow" "${@:2}" || failed=$((failed + 1))
    echo "round $round of $rounds: $failed failed so far"
done
exit $((failed > 0))
