#!/usr/bin/env bash
# Check and time the package on one NVIDIA GPU, in less than eight minutes and without network:
#
#     bash benchmarks/gpu.sh [OUTPUT.json]
#
# Further arguments go to benchmarks/gpu.py; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
output=gpu.json
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi
exec "$python" benchmarks/gpu.py --output "$output" "$@"
