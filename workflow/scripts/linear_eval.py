"""Evaluate an encoder by the linear protocol: a linear classifier on frozen features.

    python workflow/scripts/linear_eval.py --recipe digits --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/linear

One process per device, as pretrain.py. Reads the packed dataset, the encoder and its card. Writes
<output>/metrics.csv (one line: top-1 and top-5 of the last epoch, in %) and <output>/history.csv (a line per epoch).
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, existing_path, start_compute
from selfsup.atomic_files import write_atomically
from selfsup.data.store import PackedStore
from selfsup.errors import run_script
from selfsup.evaluation.encoder import load_encoder
from selfsup.evaluation.linear import Compute, evaluate_linear, protocol
from selfsup.recipe import parse_recipe
from selfsup.training.clock import LINES_AT_FIRST_S, duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--encoder", required=True, type=existing_path, help="encoder.safetensors, its card beside it")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    store = PackedStore(arguments.data)
    encoder, card = load_encoder(arguments.encoder, recipe)
    ranks, device, precision, workers = start_compute(arguments)
    compute = Compute(device, precision, workers, ranks)
    rows, epochs = [], recipe["linear"]["epochs"]
    began = last_line = time.monotonic()
    for row in evaluate_linear(encoder.to(device), store, recipe, seed=arguments.seed, compute=compute):
        rows.append(row)
        now = time.monotonic()
        if ranks.is_main and (row["epoch"] == epochs or now - last_line >= LINES_AT_FIRST_S):
            last_line, left = now, (now - began) / row["epoch"] * (epochs - row["epoch"])
            print(
                f"linear epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4g}  lr {row['lr']:.4g}  "
                f"top-1 {row['top1']:.2f} %  {row['images_per_s']:,.0f} images/s  left {duration(left)}",
                flush=True,
            )
    if ranks.is_main:
        write_results(arguments.output, pd.DataFrame(rows), card, recipe, store, arguments.seed)
    ranks.close()


def write_results(folder: Path, history: pd.DataFrame, card: dict, recipe: dict, store: PackedStore, seed: int) -> None:
    last, best = history.iloc[-1], history.loc[history["top1"].idxmax()]
    metrics = {
        "top1": last["top1"],
        "top5": last["top5"],
        "n_test": len(store.test),
        "best_top1": best["top1"],
        "best_epoch": int(best["epoch"]),
        "seed": seed,
        "network": card["network"],
        "protocol": protocol(recipe),
        "dataset_fingerprint": store.fingerprint,
        "encoder_sha256": card["encoder_sha256"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "history.csv", history.to_csv(index=False))
    write_atomically(folder / "metrics.csv", pd.DataFrame([metrics]).to_csv(index=False))


if __name__ == "__main__":
    run_script(main)
