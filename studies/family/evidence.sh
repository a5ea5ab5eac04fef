#!/usr/bin/env bash
# The comparison of the paper at one scale: trains the family side by side, then measures every trained model. The same
# command started again continues: systems and records that are finished are not made again.
#
#     bash studies/family/evidence.sh training_scripts/configs/enwiki.yaml tokens=8.4e6 \
#         enwiki.train.txt enwiki.valid.txt enwiki.test.txt --muon_learning_rate 0.01      # further words: for train.py
#     SYSTEMS="mdlm lomdm" OTHER_SEEDS="" BY_TIME="" EXACT="" ROWS=16 bash studies/family/evidence.sh \
#         training_scripts/configs/enwiki.yaml tokens=2e4 a.txt b.txt c.txt --hidden_size 32     # to try it, minutes
#
# By the environment (an empty value leaves the part out):
#   SYSTEMS      of the first seed, 1; the first one is what the others are compared with
#   OTHER_SEEDS  seeds of PAIRED, the systems that are trained again (mdlm mdlm_two_views lomdm)
#   BY_TIME      systems trained by the time bound too
#   ROWS         packed rows of the test text that are measured
#   EXACT        texts of which 12 neighbouring positions get their exact value, 4,096 passes each
#   JUDGE        a causal language model, or a .gguf file, for written texts
#   ZERO_SHOT    words for `evaluate.py zero-shot`, for example "--sets ptb --file ptb=ptb.valid.txt"
#   RUNS, RESULTS, PYTHON   folders of the runs and of the records; the interpreter
# A record is not made again with other words: it is an error, and the remedy is to delete it or to name other RESULTS.
set -euo pipefail
shopt -s nullglob
[ $# -ge 5 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2; }
config=$(realpath "$1") budget=$2 train=$(realpath "$3") validation=$(realpath "$4") test=$(realpath "$5")
shift 5
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
if ! [ -x "$(command -v "$python")" ]; then
    [ -z "${PYTHON-}" ] || { echo "error: PYTHON=$PYTHON cannot be run." >&2; exit 2; }
    python=python3
fi
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
systems=${SYSTEMS-mdlm mdlm_two_views lomdm ar sedd genmd4 bd3lm_16 bd3lm_16_two_views bd3lm_4 block_lomdm uniform_psi}
other_seeds=${OTHER_SEEDS-2}
paired=${PAIRED-mdlm mdlm_two_views lomdm}
by_time=${BY_TIME-mdlm lomdm block_lomdm}
rows=${ROWS-512}
exact=${EXACT-32}
scale=$(basename "$config" .yaml)-$budget
runs=${RUNS:-outputs/evidence-$scale}
results=${RESULTS:-outputs/studies/evidence-$scale}

# compare NAME SEED SYSTEMS [words]: trains them, runs in $runs/NAME, record $results/NAME.json
compare() {
    local name=$1 seed=$2 which=$3
    shift 3
    [ -n "$which" ] || return 0
    # shellcheck disable=SC2086
    "$python" studies/family/compare_systems.py --config "$config" --train_file "$train" --validation_file "$validation" \
        --budget "$budget" --seed "$seed" --systems $which --output_dir "$runs/$name" --output "$results/$name.json" "$@"
}

# measure MODEL NAME COMMAND [words]: one record of evaluate.py, $results/<run>-<system>-NAME.json
measure() {
    local model=$1 name command=$3
    name=$(basename "$(dirname "$1")")-$(basename "$1")-$2
    shift 3
    local output=$results/$name.json words=$runs/$name.words  # what the record was made with
    if [ -e "$output" ]; then
        [ "$(cat "$words" 2>/dev/null)" = "$command $*" ] && return 0
        echo "error: $output was made by other words than '$command $*'. Delete it, or name another folder by RESULTS." >&2
        exit 1
    fi
    echo "$command $*" >"$words"
    "$python" training_scripts/evaluate.py "$command" --model "$model" --output "$output" --quiet "$@"
}

compare seed1 1 "$systems" "$@"
for seed in $other_seeds; do
    compare "seed$seed" "$seed" "$paired" "$@"
done
compare time1 1 "$by_time" --bound time "$@"

for folder in "$runs"/*/*/config.json; do
    model=$(dirname "$folder")
    [ "$(basename "$model")" != tokenizer ] || continue
    text=(--file "$test" --max_rows "$rows")
    kind=$(sed -n 's/.*"rate_type": "\(.*\)".*/\1/p' "$folder")  # nothing: autoregressive
    samples=()
    [ -z "$kind" ] || samples=(--num_samples 8)
    measure "$model" test likelihood "${text[@]}" ${samples[@]+"${samples[@]}"}
    if [ -n "$kind" ]; then
        measure "$model" time likelihood "${text[@]}" --num_samples 8 --bound time
        # of few rows: 8 orders take 8 passes a token
        measure "$model" orders likelihood --file "$test" --max_rows 16 --num_orders 8
        [ -z "$exact" ] ||
            measure "$model" exact likelihood --file "$test" --max_rows "$exact" --exact_gap 12 --span --num_texts "$exact"
    fi
    if [ "$kind" = learned ]; then
        measure "$model" without_order likelihood "${text[@]}" --num_samples 8 --without_order
        measure "$model" order order --file "$test" --max_rows 64 --num_samples 8
    fi
    # shellcheck disable=SC2086
    [ -z "${ZERO_SHOT-}" ] || measure "$model" zero_shot zero-shot --max_rows "$rows" $ZERO_SHOT
    if [ -n "${JUDGE-}" ]; then
        sweep=()
        [ -z "$kind" ] || sweep=(--sweep)
        measure "$model" generation generation --judge "$JUDGE" ${sweep[@]+"${sweep[@]}"}
    fi
done
echo "records: $results"
