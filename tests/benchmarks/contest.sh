#!/usr/bin/env bash
# The contest's whole run on the GPUs of one host: speed of all ranks against one, training to the clock with the export
# and the scores over ranks, the same score again from the file in fresh processes, audit, report.
#
#   tests/benchmarks/contest.sh 8 --config configs/golf.yaml --config configs/eight_gpus.yaml
#   tests/benchmarks/contest.sh 2 --config configs/golf.yaml --trainer.devices 2 --trainer.accumulate_grad_batches 4
#
# The first argument is the number of ranks, the rest is given to fit and test as it is, and must name as many devices.
# Everything lies in runs/contest/; SPEED_OPTIONS is given to rank_speed.py, AUDIT_OPTIONS to audit. NVLink multicast is off.
set -euo pipefail
ranks=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
out=runs/contest
export NCCL_NVLS_ENABLE=0 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

stage() {
    echo "== $1, $(date -u +%T)"
    shift
    "$@"
}

mkdir -p runs
stage "speed" python "$here/rank_speed.py" --ranks "$ranks" --json runs/contest_speed.json ${SPEED_OPTIONS:-}
trace=()
if python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    trace=(--trainer.callbacks+=steady_trace.SteadyTrace --trainer.callbacks.out=runs/contest_trace.json)
fi
stage "fit" python -m golf_lightning fit "$@" --run.name contest --ranks.check_every_steps 500 "${trace[@]}"
mv runs/contest_speed.json "$out/speed.json"
[ ${#trace[@]} = 0 ] || mv runs/contest_trace.json "$out/trace.json"
stage "test" python -m golf_lightning test "$@" --run.name contest-again --ckpt_path "$out/artifact.golf"
folder=$(python -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['data']['folder'])" "$out/config.yaml")
stage "audit" python -m golf_lightning audit --artifact "$out/artifact.golf" --data "$folder" --run "$out" --json "$out/audit.json" ${AUDIT_OPTIONS:-}
stage "report" python -m golf_lightning report "$out"
python - "$out/result.json" runs/contest-again/test.json <<'PY'
import json
import sys
from pathlib import Path

scores = [json.loads(Path(name).read_text())["scores"]["ttt"] for name in sys.argv[1:]]
first, second = (score["nats"] / score["targets"] for score in scores)
print(f"nats per target of fit {first:.9f}, of test alone {second:.9f}, difference {abs(first - second):.1e}")
PY
