"""Snakemake's own linter; ends with status 1 on any finding but the one that is accepted, with its reason."""

import subprocess
import sys

# One environment serves all rules (requirements.txt, made by `make env` or conda, or a cluster's PyTorch module): an
# environment per rule would install PyTorch's gigabytes again for each.
ACCEPTED = "Specify a conda environment or container for each rule.:"
FINDING = "    * "


def main() -> int:
    linter = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], capture_output=True, text=True, check=False)
    place, unexpected = "", []
    for line in (linter.stdout + linter.stderr).splitlines():
        if line.startswith("Lints for "):
            place = line.removeprefix("Lints for ")
        elif line.startswith(FINDING) and not line.endswith(ACCEPTED):
            unexpected.append(f"{place} {line.removeprefix(FINDING)}")
    if not place:
        unexpected.append(f"snakemake --lint did not run:\n{linter.stdout}{linter.stderr}")
    print("\n".join(unexpected) or "snakemake --lint: nothing but what is accepted")
    return int(bool(unexpected))


if __name__ == "__main__":
    sys.exit(main())
