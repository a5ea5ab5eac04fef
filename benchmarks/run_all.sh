#!/usr/bin/env bash
# Measures everything on whatever device is there, within 10 minutes:
#   outputs/benchmarks/performance_<device>.json   correctness, import, blocks, attention, scaling, sampling, memory,
#                                                  training (performance.py)
#   outputs/benchmarks/short_run-<device>.json     one short training run each of MDLM and LoMDM
# Run it from the repository:  bash benchmarks/run_all.sh        (PYTHON=... chooses the interpreter)
#   --smoke    toy sizes, in seconds, no short runs; further options go to performance.py
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in *" --help "* | *" -h "*) sed -n '2,8s/^# \{0,1\}//p' benchmarks/run_all.sh; exit 0 ;; esac
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

"$python" benchmarks/performance.py "$@"
[[ " $* " == *" --smoke "* ]] || "$python" benchmarks/short_run.py
