#!/usr/bin/env bash
# All that wants a GPU, in one call, on a machine with one CUDA device and PyTorch's usual packages; no Snakemake, no
# network.
#
#     benchmarks/gpu.sh OUT [--minutes 5] [--cifar10 cifar-10-python.tar.gz] [--only tests,agreement,bench,training]
#     benchmarks/gpu.sh OUT --smoke            # tiny, on a CPU, to see that the script works
#
# Writes into OUT, less than a megabyte in all: gpu.txt (all output), tests.txt, agreement.json, bench.json,
# resnet50.json, training.json, history.csv. A part that fails is told at the end, and the others run. PYTHON chooses
# the interpreter.
set -uo pipefail
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

PYTHON=${PYTHON:-python3} MINUTES=5 CIFAR10=() ONLY=tests,agreement,bench,training QUICK=() DEVICE=cuda
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || { usage >&2; exit 2; }
OUT=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) MINUTES=$2; shift ;;
        --cifar10) CIFAR10=(--cifar10 "$(realpath "$2")"); shift ;;
        --only) ONLY=$2; shift ;;
        --smoke) QUICK=(--quick) DEVICE=cpu ;;
        *) echo "error: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")/.." || exit 1

check() {
    "$PYTHON" - "$DEVICE" <<'CHECK' || return 1
import importlib.util, sys
wanted = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "pandas": "pandas", "yaml": "pyyaml",
          "PIL": "pillow", "safetensors": "safetensors", "tqdm": "tqdm"}
missing = [package for module, package in wanted.items() if not importlib.util.find_spec(module)]
if missing:
    sys.exit(f"error: missing: pip install {' '.join(missing)}")
optional = {"pytest": "the tests are left out", "sklearn": "made pictures instead of digits",
            "lightly": "the peer lightly is left out"}
for module, without in optional.items():
    if not importlib.util.find_spec(module):
        print(f"note: {module} is not installed: {without}")
import torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("error: torch finds no GPU: check nvidia-smi and the torch build, or try --smoke")
print("python", sys.version.split()[0], "torch", torch.__version__,
      torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "cpu")
CHECK
    [ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
    df -h /dev/shm | tail -n 1  # loader processes hand batches over through it: a container's 64 MB are too few
    return 0
}

part() {  # name, command...: runs it when --only has it, with its time
    case ,$ONLY, in *,"${1%%-*}",*) ;; *) return ;; esac
    local name=$1 began=$SECONDS
    shift
    printf '\n##### %s: %s\n' "$name" "$*"
    "$@" || failed+=("$name (status $?)")
    printf '##### %s took %s s\n' "$name" $((SECONDS - began))
}
bench() { "$PYTHON" "benchmarks/$1.py" --device "$DEVICE" ${QUICK[@]+"${QUICK[@]}"} "${@:2}"; }
tests() {
    "$PYTHON" -c 'import pytest' 2>/dev/null || return 0
    "$PYTHON" -m pytest -p no:cacheprovider -m cuda tests/cuda -rs 2>&1 | tee "$OUT/tests.txt"
    local status=${PIPESTATUS[0]}
    # Without a GPU pytest may find nothing to run (5).
    if [ "$status" = 5 ] && [ "$DEVICE" = cpu ]; then return 0; fi
    return "$status"
}

all() {
    check || return 1
    failed=()
    part tests tests
    part agreement bench precision_agreement --compile --json "$OUT/agreement.json"
    part bench bench training_step --levers --memory --profile --json "$OUT/bench.json"
    if [ "$DEVICE" = cuda ]; then  # the batch per device that 80 GB are to hold
        part bench-256 bench training_step --size resnet50 --batch 256 --only ours --memory --json "$OUT/resnet50.json"
    fi
    part training bench short_training --minutes "$MINUTES" ${CIFAR10[@]+"${CIFAR10[@]}"} --results "$OUT" \
        --json "$OUT/training.json"
    if [ ${#failed[@]} -gt 0 ]; then
        printf '\nfailed: %s\n' "${failed[*]}"
        return 1
    fi
    printf '\nall parts ran; results in %s\n' "$OUT"
}

all 2>&1 | tee "$OUT/gpu.txt"
exit "${PIPESTATUS[0]}"
