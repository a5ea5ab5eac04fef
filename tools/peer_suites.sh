#!/usr/bin/env bash
# The test suites of transformers, diffusers and peft on LoMDM's configuration, model, scheduler and pipeline:
#
#     PYTHON=.venv/bin/python tools/peer_suites.sh [--source PEER=DIR]... [PEER]...
#
# Takes each suite from the source distribution on PyPI of the version that is installed, or from --source, a checkout
# of it. (diffusers' source distribution has no tests: without --source its suites are left out, which is said.)
# Prints passed / failed / expected differences, with a reason for each of these (tools/peer_suites/expected.py); exit
# status 1 if a failure has none. About a quarter of an hour on two cores; nothing is kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

declare -A source=() proof=(
    [transformers]=tests/test_modeling_common.py
    [diffusers]=tests/pipelines/test_pipelines_common.py
    [peft]=tests/test_feature_extraction_models.py
)
peers=()

fail() {
    echo "error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --source)
        [[ ${2:-} == *=* ]] || fail "--source takes PEER=DIR, for example diffusers=../diffusers, got '${2:-}'."
        [ -d "${2#*=}" ] || fail "--source $2: there is no such folder."
        source[${2%%=*}]=$(cd "${2#*=}" && pwd)
        shift
        ;;
    -h | --help)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"
        exit
        ;;
    *) peers+=("$1") ;;
    esac
    shift
done
[ ${#peers[@]} -gt 0 ] || peers=(transformers diffusers peft)
for peer in "${peers[@]}" "${!source[@]}"; do
    [ -n "${proof[$peer]:-}" ] || fail "the peers are ${!proof[*]}, got '$peer'."
done

# What their tests import beside our own test requirements.
"$python" -m pip install --quiet --no-deps --target "$work/extra" parameterized requests-mock

# The tests of a peer as the package `tests` below $work/PEER.
fetch() {
    local version
    if [ -n "${source[$1]:-}" ]; then
        mkdir -p "$work/$1"
        cp -r "${source[$1]}/tests" "$work/$1/tests"
    else
        version=$("$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1")
        "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$work" "$1==$version"
        tar -xzf "$work/$1-$version.tar.gz" -C "$work"
        mv "$work/$1-$version" "$work/$1"
    fi
    touch "$work/$1/tests/__init__.py"
}

status=0
for peer in "${peers[@]}"; do
    fetch "$peer"
    if [ ! -f "$work/$peer/${proof[$peer]}" ]; then
        echo "$peer: its source distribution has no ${proof[$peer]}. Pass --source $peer=DIR, a checkout." >>"$work/report"
        continue
    fi
    (
        cd "$work"
        export PEER=$peer PEER_REPORT=$work/$peer.txt HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
        export PYTHONPATH=$work/$peer:$work/extra:$root/tools/peer_suites:$root/src PYTHONDONTWRITEBYTECODE=1
        "$python" -m pytest -q -c /dev/null --rootdir "$root/tools/peer_suites" -p no:cacheprovider -p report \
            --no-summary -W ignore "$root/tools/peer_suites/suite_$peer.py"
    ) || status=1
    [ -f "$work/$peer.txt" ] || fail "the suite of $peer did not run."
    cat "$work/$peer.txt" >>"$work/report"
done
echo
cat "$work/report"
exit $status
