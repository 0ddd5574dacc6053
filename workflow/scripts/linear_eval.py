"""Evaluate an encoder by its recipe's linear protocol: evaluate.py, which says what is read and written.

    python workflow/scripts/linear_eval.py --recipe digits --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/linear
"""

from evaluate import main
from selfsup.errors import run_script

if __name__ == "__main__":
    run_script(main)
