#!/usr/bin/env bash
# All that wants a GPU, on a machine with one CUDA device and PyTorch's usual packages; no Snakemake, no network.
#
#     benchmarks/gpu.sh OUT --check [--cifar10 FILE] [--only PARTS]     under ten minutes: what binds, part by part
#     benchmarks/gpu.sh OUT --train MINUTES [--cifar10 FILE]            table 1's experiment for as many epochs as fit
#     benchmarks/gpu.sh OUT --arms [--cifar10 FILE]                     docs/gpu/README.md's 40-epoch arms
#     benchmarks/gpu.sh OUT [--minutes 5] [--cifar10 FILE] [--only tests,agreement,bench,training]     older set, longer
#
# --check has the parts facts, steps, start, tests, resnet50, profile, run, convolutions, kills, the most wanted first,
# each with a limit of its own, and all together with --within SECONDS (580). A part whose limit is over leaves what it
# has measured; those for which no time is left are told at the end, for another call with --only. FILE is CIFAR-10's
# archive, its folder, or a tree of image files, in a folder or a tar. --smoke: tiny, on a CPU, to see that the script
# works. A part that fails is told at the end, and the others run. --epoch-seconds N with --train: what an epoch takes,
# all included, instead of timing steps. After -- come further options: with --check of gpu_check.py's part steps, with
# --train and --arms of table1.py. PYTHON chooses the interpreter.
#
# Where one command may take less time than the machine can be had: --leave SECONDS with --train or --arms returns then
# and leaves the work going on, from a copy of this tree; `benchmarks/gpu.sh OUT --fetch [--leave SECONDS]` waits for its
# end. Both bring what there is into OUT. --work FOLDER (/tmp/selfsup-gpu) has what lasts from one call to the next.
#
# OUT gets at most 8 files of at most 16 MB: gpu.txt (all output), JSON and CSV, and with --train the encoder in pieces:
# cat encoder.part* > encoder.safetensors
set -uo pipefail
usage() { sed -n '2,25s/^# \{0,1\}//p' "$0"; }
refuse() { echo "error: $1" >&2; usage >&2; exit 2; }

PYTHON=${PYTHON:-python3} MINUTES=5 CIFAR10=() QUICK=() DEVICE=cuda MODE=older ONLY= WORK=/tmp/selfsup-gpu LEAVE= EPOCH=() FURTHER=() WITHIN=580
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || { usage >&2; exit 2; }
GIVEN=("${@:2}") FROM=$PWD OUT=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
        --check | --arms | --fetch) MODE=${1#--} ;;
        --) shift; FURTHER=("$@"); break ;;
        --smoke) QUICK=(--quick --threads 1) DEVICE=cpu ;;
        --train | --minutes | --cifar10 | --only | --work | --leave | --within | --epoch-seconds)
            [ $# -gt 1 ] || refuse "$1 wants a value after it"
            case $1 in
                --train) MODE=train MINUTES=$2 ;;
                --minutes) MINUTES=$2 ;;
                --cifar10)
                    [ -e "$2" ] || refuse "--cifar10 $2: no such file or folder"
                    CIFAR10=(--cifar10 "$(realpath "$2")") ;;
                --only) ONLY=$2 ;;
                --work) WORK=$2 ;;
                --leave) LEAVE=$2 ;;
                --within) WITHIN=$2 ;;
                --epoch-seconds) EPOCH=(--epoch-seconds "$2") ;;
            esac
            shift ;;
        *) refuse "unknown argument $1" ;;
    esac
    shift
done
case $MINUTES in '' | *[!0-9.]*) refuse "--train and --minutes want a number of minutes, found $MINUTES" ;; esac
case $WITHIN in '' | *[!0-9]*) refuse "--within wants whole seconds, found $WITHIN" ;; esac
case $LEAVE in *[!0-9]*) refuse "--leave wants whole seconds, found $LEAVE" ;; esac
mkdir -p "$OUT" "$WORK" || exit 1
OUT=$(cd "$OUT" && pwd) WORK=$(cd "$WORK" && pwd)
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$(dirname "$0")/.." || exit 1
export PYTHON PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$WORK/inductor}

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
print("python", sys.version.split()[0], "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(),
      torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "cpu")
CHECK
    [ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
    df -h /dev/shm | tail -n 1  # loader processes hand batches over through it: a container's 64 MB are too few
    return 0
}
facts() {  # what is not there (free, uptime: procps) is left out; the 8th of cpu's numbers: stolen
    nproc; uptime 2> /dev/null; head -n 1 /proc/stat; free -g 2> /dev/null | head -n 2 || :
}

part() {  # name, seconds (0: no limit), command...: runs it when --only has it, for at most so long, with its time
    case ,$ONLY, in *,"${1%%-*}",*) ;; *) return ;; esac
    local name=$1 limit=$2 began=$SECONDS left
    shift 2
    if [ "$DEVICE" = cpu ]; then limit=$((10 * limit)); fi  # whose machine may be busy
    if [ -n "$WHOLE" ]; then
        left=$((WHOLE - SECONDS))
        if [ "$left" -lt 15 ]; then unbegun+=("$name"); return; fi
        if [ "$left" -lt "$limit" ]; then limit=$left; fi
    fi
    printf '\n##### %s: %s\n' "$name" "$*"
    LIMIT=$limit "$@" || failed+=("$name (status $?)")
    printf '##### %s took %s s\n' "$name" $((SECONDS - began))
}
limited() {  # asks the command to end when its time is over, and ends it when it has not done so after 10 s
    if command -v timeout > /dev/null && [ "${LIMIT:-0}" != 0 ]; then timeout -s "${BY:-TERM}" -k 10 "$LIMIT" "$@"; else "$@"; fi
}
bench() { limited "$PYTHON" "benchmarks/$1.py" --device "$DEVICE" ${QUICK[@]+"${QUICK[@]}"} "${@:2}"; }
tests() {  # options of pytest; it tells what has passed when it is interrupted
    "$PYTHON" -c 'import pytest' 2> /dev/null || return 0
    BY=INT limited "$PYTHON" -m pytest -p no:cacheprovider -m cuda tests/cuda -rs --durations=5 "$@" 2>&1
    local status=$?
    # Without a GPU pytest may find nothing to run (5).
    if [ "$status" = 5 ] && [ "$DEVICE" = cpu ]; then return 0; fi
    return "$status"
}

older() {
    ONLY=${ONLY:-tests,agreement,bench,training}
    part tests 0 tests
    part agreement 0 bench precision_agreement --compile --json "$OUT/agreement.json"
    part bench 0 bench training_step --levers --memory --profile --json "$OUT/bench.json"
    if [ "$DEVICE" = cuda ]; then  # the batch per device that 80 GB are to hold
        part bench-256 0 bench training_step --size resnet50 --batch 256 --only ours --memory --json "$OUT/resnet50.json"
    fi
    part training 0 bench short_training --minutes "$MINUTES" ${CIFAR10[@]+"${CIFAR10[@]}"} --results "$OUT" \
        --json "$OUT/training.json"
}
measure() {  # the most wanted first: each has a limit, and all together have one
    ONLY=${ONLY:-facts,steps,start,tests,resnet50,profile,run,convolutions,kills}
    WHOLE=$WITHIN
    rm -f "$WORK"/run_*.csv  # of an earlier call
    part facts 5 facts
    part steps 205 bench gpu_check steps --json "$OUT/steps.json" ${FURTHER[@]+"${FURTHER[@]}"}
    part start 75 bench gpu_check start --json "$OUT/start.json"
    part tests 160 tests -k 'not three_kills'
    part resnet50 120 bench gpu_check resnet50 --json "$OUT/resnet50.json"
    part profile 45 bench gpu_check profile --json "$OUT/profile.json"
    part run 90 bench gpu_check run ${CIFAR10[@]+"${CIFAR10[@]}"} --results "$WORK" --json "$OUT/run.json"
    part convolutions 40 bench gpu_check convolutions --json "$OUT/convolutions.json"
    part kills 240 tests -k three_kills
    if [ -e "$WORK/run_history.csv" ]; then tar czf "$OUT/run.tar.gz" -C "$WORK" run_history.csv run_knn.csv run_ledger.csv; fi
}
table1() {
    ONLY=$MODE
    part "$MODE" 0 bench table1 "$@" ${CIFAR10[@]+"${CIFAR10[@]}"} --work "$WORK/table1" --results "$OUT" \
        --json "$OUT/training.json" ${FURTHER[@]+"${FURTHER[@]}"}
}
all() {
    failed=() unbegun=() WHOLE=
    check || return 1
    case $MODE in
        older) older ;;
        check) measure ;;
        train) table1 --minutes "$MINUTES" ${EPOCH[@]+"${EPOCH[@]}"} ;;
        arms) table1 --arms ;;
    esac
    if [ ${#unbegun[@]} -gt 0 ]; then printf '\nno time was left for: %s\n' "${unbegun[*]}"; fi
    if [ ${#failed[@]} -gt 0 ]; then
        printf '\nfailed: %s\n' "${failed[*]}"
        return 1
    fi
    [ ${#unbegun[@]} -gt 0 ] || printf '\nall parts ran; results in %s\n' "$OUT"
}

begin() {  # the same call without --leave, in a session of its own, from a copy of the tree
    local pid
    pid=$(cat "$WORK/pid" 2> /dev/null)
    if [ ! -e "$WORK/ended" ] && [ -n "$pid" ] && kill -0 "$pid" 2> /dev/null; then
        echo "error: $WORK has work going on, process $pid: use --fetch to wait for its end, or another --work" >&2
        return 2
    fi
    rm -rf "$WORK/tree" "$WORK/out" "$WORK/ended"
    mkdir -p "$WORK/tree"
    cp -r benchmarks docs tests workflow pyproject.toml "$WORK/tree"
    : > "$WORK/log"
    rm -f "$WORK/pid"
    (cd "$FROM" && LEFT=1 ENDED=$WORK/ended setsid nohup bash -c \
        'echo $$ > "${ENDED%/*}/pid"; bash "$0" "$@"; echo $? > "$ENDED.new"; mv "$ENDED.new" "$ENDED"' \
        "$WORK/tree/benchmarks/gpu.sh" "$WORK/out" "${GIVEN[@]}" >> "$WORK/log" 2>&1 < /dev/null &)
}
wait_for_it() {
    [ -e "$WORK/log" ] || { echo "error: $WORK has no work that was left going on: start with --train and --leave" >&2; return 2; }
    while [ ! -e "$WORK/ended" ] && [ "$SECONDS" -lt "${LEAVE:-600}" ]; do sleep 1; done
    local over=  # known before the copy: what ends during it is brought by the next call
    [ ! -e "$WORK/ended" ] || over=1
    cp "$WORK"/out/* "$OUT" 2> /dev/null
    cp "$WORK/log" "$OUT/gpu.txt"
    tail -n 15 "$WORK/log"
    if [ -z "$over" ]; then
        echo "goes on: benchmarks/gpu.sh OUT --fetch --work $WORK"
        return 0
    fi
    return "$(cat "$WORK/ended")"
}

if [ "$MODE" = fetch ]; then wait_for_it; exit; fi
if [ -n "$LEAVE" ] && [ -z "${LEFT:-}" ]; then
    case $MODE in train | arms) ;; *) refuse "--leave is for --train and --arms" ;; esac
    begin || exit
    wait_for_it
    exit
fi
all 2>&1 | tee "$OUT/gpu.txt"
exit "${PIPESTATUS[0]}"
