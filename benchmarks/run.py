"""All benchmarks one after the other, and one JSON file with what they gave: `make bench`.

    python benchmarks/run.py [training_step ranks ...] [--quick] [--json FILE]

Every benchmark is a process of its own, so that threads, memory and caches of one are not another's. What is printed
goes into the JSON file too, figure by figure, with the machine, the versions and the code's revision; the file is
benchmarks/results/<host>-<time>.json unless --json says otherwise, and is written anew after each benchmark. A
benchmark that fails is told at the end, and the others run. --quick shows in minutes that all of them work.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring  # noqa: F401  puts selfsup on the path

from selfsup.atomic_files import write_atomically

HERE = Path(__file__).parent
# By name: what each is given beside --quick. The first answer the most frequent questions.
BENCHMARKS = {
    "training_step": ["--levers", "--memory"],
    "methods": [],
    "start_up": [],
    "augmentation": [],
    "checkpoint_stall": [],
    "linear_evaluation": [],
    "packing": [],
    "ranks": [],
    "scale": [],
    "precision_agreement": [],
}


def main() -> int:
    present = [name for name in BENCHMARKS if (HERE / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(present)}")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: to see that all work, not to report")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in present]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(present)}")
    path = options.json or HERE / "results" / f"{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results, failed = [], []
    for name in options.names or present:
        print(f"\n=== {name}", flush=True)
        result = run(name, options)
        if result["status"]:
            failed.append(f"{name} (status {result['status']})")
        results.append(result)
        write_atomically(path, json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run(name: str, options: argparse.Namespace) -> dict:
    """Run a benchmark, its output going to ours, and return what it wrote, its status and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "result.json", time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *BENCHMARKS[name], "--json", str(path)]
        command += ["--device", options.device, *["--quick"] * options.quick]
        status = subprocess.run(command).returncode
        content = json.loads(path.read_text()) if path.exists() else {"benchmark": name}
    return {**content, "status": status, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
