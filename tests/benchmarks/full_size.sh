#!/usr/bin/env bash
# Full-size runs on one GPU, one after another, each `fit` from start to score; names choose them.
#
#   tests/benchmarks/full_size.sh DATA pr1536 golf                          # 240 s of clock, the whole split
#   tests/benchmarks/full_size.sh DATA golf-42 golf-0 golf-1337             # 120 s, seeds
#   tests/benchmarks/full_size.sh DATA base no-recurrence lanes-isolated lanes-none no-xsa no-ema adamw-0005 adamw-001
#                                                                           # 60 s, one thing changed, 512 documents
#
# Runs lie in runs/NAME. On a host with two GPUs two of these may go side by side, CUDA_VISIBLE_DEVICES telling them apart;
# OPTIONS is given to every run. A run that fails stops the list.
set -euo pipefail
data=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p runs

for name in "$@"; do
    recipe=golf program=(-m golf_lightning)
    more=(--clock.budget_s 60 --clock.reserve_s 8 --model.ttt.max_documents 512)
    case $name in
    golf) more=(--clock.budget_s 240) ;;
    pr1536) recipe=pr1536 more=(--clock.budget_s 240) ;;
    golf-*) more=(--clock.budget_s 120 --seed_everything "${name#golf-}") ;;
    base) ;;
    no-recurrence) more+=(--recurrence.start 1) ;;
    lanes-*) more+=(--model.gpt.lanes "${name#lanes-}") ;;
    no-xsa) more+=(--model.gpt.xsa false) ;;
    no-ema) more+=(--ema.enabled false) ;;
    adamw-*) program=("$here/adam_banks.py") more+=(--model.optimizer.muon_lr "0.${name#adamw-}") ;;
    *)
        echo "full_size.sh knows no run called $name; the names are in its first lines." >&2
        exit 2
        ;;
    esac
    echo "== $name, $(date -u +%T)"
    python "${program[@]}" fit --config "configs/$recipe.yaml" --config configs/one_gpu.yaml --data.folder "$data" \
        --run.name "$name" --console.every_steps 10 --warmup.cache_folder runs/compiled "${more[@]}" ${OPTIONS:-}
done
