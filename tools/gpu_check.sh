#!/usr/bin/env bash
# Run on a GPU all that this project wants to know of one, in at most eleven minutes; no network is needed.
#
#     tools/gpu_check.sh [--smoke] [--only NAMES] [WHEELS]
#
# WHEELS is a folder of wheels for what the machine's Python lacks (its own PyTorch stays). Results go to $OUT, by
# default build/gpu: results.json with every figure, log.txt, and the weights. --smoke runs every part at its smallest,
# on whatever device there is, to see that the script works; --only runs some parts, "device tests,bench" say.
set -u
cd "$(dirname "$0")/.."
options=()
if [ "${1:-}" = --smoke ]; then options+=(--smoke); shift; fi
if [ "${1:-}" = --only ]; then options+=(--only "$2"); shift 2; fi
export OUT="${OUT:-build/gpu}" PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"
mkdir -p "$OUT"
if [ -n "${1:-}" ]; then
    site="$(mktemp -d)"
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$1"/*.whl || exit 1
    export PYTHONPATH="$PWD:$site" PATH="$site/bin:$PATH"
fi
exec "${PYTHON:-python3}" tools/gpu_check.py --out "$OUT" "${options[@]}"
