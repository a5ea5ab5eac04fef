#!/usr/bin/env bash
# Measures everything on whatever device is there, within 10 minutes, and writes results/*.json:
#   results/correctness_<device>.json   the device against float64 on the CPU
#   results/throughput_<device>.json    tokens per second and peak memory, training and sampling, MDLM and LoMDM
#   results/short_run_<device>.json     one short training run each of MDLM and LoMDM
# Run it from the repository:  bash benchmarks/run_all.sh        (PYTHON=... chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

echo "== correctness";  "$python" benchmarks/correctness.py
echo "== throughput";   "$python" benchmarks/throughput.py
echo "== short runs";   "$python" benchmarks/short_run.py
