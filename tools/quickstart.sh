#!/usr/bin/env bash
# From questions to a trained, evaluated aggregator with SmolLM2-135M: every stage by the command you would
# type yourself. Run it with `make quickstart`; a second run goes on where the first stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
model=models/smollm2-135m
home=quickstart

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

SECONDS=0
run python tools/get_model.py --name smollm2-135m --out $model

for split in train test; do
    run python tools/generate_answers.py --engine vllm --model $model --dataset quickstart --split $split \
        --prompt few_shot --num-samples 4 --max-new-tokens 64 --seed 1 --out $home/answers/$split
    run python tools/check_answers.py --answers $home/answers/$split
done

run python tools/concat_answers.py --answers $home/answers/train --num-answers 4 --max-length 2000 \
    --tokenizer $model --out $home/sets --plot $home/set_lengths.png
run tune run grpo_ssa_distributed --config configs/135M_rl_cpu.yaml dataset.source=$home/sets \
    output_dir=$home/aggregator max_steps=16
run python tools/evaluate.py --answers $home/answers/test --aggregator $home/aggregator/step_16 --num-answers 4 \
    --max-new-tokens 24 --out $home/results/trained
run python tools/show_results.py --results $home/results --plot $home/results.png

printf '\nquickstart: done in %d min %d s after the set-up; plots: %s %s\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) $home/results.png $home/set_lengths.png
