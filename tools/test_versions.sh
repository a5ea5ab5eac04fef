#!/usr/bin/env bash
# Runs tests with the oldest and with the newest releases that pyproject.toml allows, each in an environment of its own:
#     tools/test_versions.sh                             # both, the fast suite
#     tools/test_versions.sh oldest tests/modeling       # one of them, a part of the suite
#     tools/test_versions.sh show                        # only print what `oldest` installs
# The environments are venv-oldest and venv-newest in the folder VENVS (default: build); a second run uses them again,
# and `newest` upgrades its own. PYTHON: any Python 3.11 or newer. Downloads gigabytes where torch comes with CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
which=${1:-both}
[ $# -eq 0 ] || shift

# Every `name>=version` of pyproject.toml (its extras too) as `name==version`.
lower_bounds() {
    "$python" - <<'END'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"].values()
required = {*project["dependencies"], *(one for extra in extras for one in extra)}
required = {one for one in required if not one.startswith(project["name"])}
loose = sorted(one for one in required if ">=" not in one)
if loose:
    sys.exit(f"error: pyproject.toml gives no lower bound for {', '.join(loose)}. Write for example name>=1.0.")
print("\n".join(sorted(one.replace(">=", "==") for one in required)))
END
}

# install NAME OPTIONS...: makes the environment NAME and installs the repository with its tests into it.
install() {
    local venv=${VENVS:-build}/venv-$1
    shift
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "$@" -e ".[dev]"
}

# check NAME TESTS...: says what is installed, then runs the tests.
check() {
    local venv=${VENVS:-build}/venv-$1
    echo "== $1: $("$venv/bin/python" --version), $("$venv/bin/python" -m pip list --format=freeze |
        grep -iE '^(torch|transformers|diffusers|accelerate|datasets|huggingface.hub|safetensors|peft)==' | tr '\n' ' ')"
    shift
    "$venv/bin/python" -m pytest -q -m "not slow" "$@"
}

oldest() {
    local bounds
    bounds=$(mktemp)
    lower_bounds >"$bounds"
    install oldest -c "$bounds"
    rm "$bounds"
    check oldest "$@"
}

newest() {
    install newest --upgrade --upgrade-strategy eager
    check newest "$@"
}

case $which in
show) lower_bounds ;;
oldest | newest) "$which" "$@" ;;
both)
    failed=0
    # As commands of their own: a function behind which `||` stands would go on after its own errors.
    tools/test_versions.sh oldest "$@" || failed=1
    tools/test_versions.sh newest "$@" || failed=1
    exit $failed
    ;;
*)
    echo "error: the first word must be oldest, newest, both or show, got '$which'." >&2
    exit 2
    ;;
esac
