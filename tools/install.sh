#!/usr/bin/env bash
# Makes the virtual environment VENV where it is missing and installs this repository with EXTRAS into it:
#     PYTHON=python3.12 tools/install.sh VENV train,viz
# pip can take half-copied packages for installed ones, so an environment in which the last run of this script did not
# reach its end is made anew. The marker lies inside the environment and names the process at work.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
extras=$2
python=${PYTHON:-python3}
marker=$venv/.installing

fail() {
    echo "error: $*" >&2
    exit 1
}

recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

pip_works() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

make_environment() {
    recent "$python" || fail "hf-lomdm needs Python 3.11 or newer, but '$python' is $("$python" --version 2>&1 || true)." \
        "Name a newer one, for example: make demo PYTHON=python3.12"
    echo "Making the virtual environment $venv"
    rm -rf "$venv"
    mkdir -p "$venv"
    echo $$ >"$marker"
    "$python" -m venv "$venv"
}

if [ -e "$marker" ]; then
    other=$(cat "$marker")
    if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
        fail "process $other is installing into $venv. Wait for it; if it is something else, delete $marker."
    fi
    echo "The last installation into $venv did not finish; starting again."
    make_environment
elif [ -d "$venv" ] && [ -n "$(ls -A "$venv")" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    fail "$venv exists and is no virtual environment. Choose another folder, for example: make demo VENV=.venv"
elif ! pip_works; then
    make_environment
fi
recent "$venv/bin/python" || fail "$venv holds $("$venv/bin/python" --version), but hf-lomdm needs Python 3.11 or newer." \
    "Delete $venv, or choose another folder: make demo VENV=.venv312 PYTHON=python3.12"

echo $$ >"$marker"
echo "Installing hf-lomdm[$extras] into $venv (some minutes the first time)"
# torch first: it is by far the largest part, and which of its builds is used is then settled.
"$venv/bin/python" -m pip install --quiet -c constraints.txt torch
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".[$extras]"
rm "$marker"
