"""Error feedback on compressed gradients: what the papers claim, and what it costs a training, against bits sent.

    python simulations/error_feedback.py [--budget 75] [--steps 200] [--folder FOLDER]

All by the library's own strategy ``compressed``, over rows instead of processes, with one thread:

1. Logistic regression with a nonconvex regulariser, on scikit-learn's breast cancer data sorted by class among 20 workers; exact
   gradients, top-1 of 31 entries. Each rule has the best of eleven step sizes, powers of two times EF21's theoretical one. Then
   EF21 at exactly the step sizes that the quadratic and the arithmetic mean of smoothness constants allow.
2. Quadratics whose workers' minimisers differ by more or less (ζ), with and without noise (σ); top-k of a tenth, tuned steps.
3. A classifier of digits by momentum SGD over 10 workers with one to four classes each, block top-k of 1 %. On seed 0 each rule
   has three learning rates a factor of 2 apart and, while the best is at the edge of those tried, the next one beyond; three
   seeds at the best.
4. The quickstart's PLM over 2 workers with AdamW and with Muon, block top-k of 1 % and 3 %, ``--steps`` steps, one seed, at the
   optimizer's own learning rate; EF14 with AdamW also at 4 times and a quarter of that, and with other compressors.

``--budget`` is in minutes: when it is spent, what remains of 3 and 4 is left out, which is printed. With ``--folder`` what was
done is kept there, and not done again.

Bits are of payloads, as a worker sends them up: headers, values and places; a dense round counts 32 for each entry. Prints
tables and sentences; writes docs/error_feedback.json and draws docs/error_feedback.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from compare_optimizers import finite
from feedback_claims import (
    LOGISTIC_TARGET,
    Floor,
    LargerStep,
    compare_on_logistic_regression,
    compare_on_quadratics,
    compare_steps,
)
from feedback_descent import Descent
from feedback_digits import train_digits
from feedback_picture import draw
from feedback_plm import train_plm
from feedback_report import (
    digits_sentences,
    digits_table,
    logistic_sentences,
    logistic_table,
    plm_sentences,
    plm_table,
    quadratic_sentences,
    quadratic_table,
    step_sentences,
    step_table,
)

DOCS = Path(__file__).parents[1] / "docs"
CURVE_POINTS = 50
"""Of a descent, in the JSON."""

Kind = TypeVar("Kind", Descent, LargerStep, Floor)


def main() -> None:
    """Compute, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=75, help="minutes")
    parser.add_argument("--steps", type=int, default=200, help="of the PLM (default 200)")
    parser.add_argument("--folder", type=Path, help="where results are kept, and found again; left out: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        experiment(folder, time.monotonic() + 60 * options.budget, options.steps)


def experiment(folder: Path, deadline: float, steps: int) -> None:
    """Everything."""
    descents = kept(folder / "logistic.json", Descent, compare_on_logistic_regression)
    larger = kept(folder / "steps.json", LargerStep, lambda: [compare_steps("class"), compare_steps("norm")])
    floors = kept(folder / "quadratics.json", Floor, compare_on_quadratics)
    grids, digits, left_out = train_digits(folder, deadline)
    plm, more_left_out = train_plm(steps, folder, deadline)
    tables = [logistic_table(descents), step_table(larger), quadratic_table(floors), digits_table(digits), plm_table(plm)]
    sentences = [
        *logistic_sentences(descents), *step_sentences(larger), *quadratic_sentences(floors),
        *digits_sentences(digits), *plm_sentences(plm), *left_out, *more_left_out,
    ]  # fmt: skip
    print("\n" + "\n\n".join(tables) + "\n")
    print(*sentences, sep="\n")
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1},
        "sentences": sentences,
        "logistic_regression": list(map(summary, descents)),
        "larger_steps": [asdict(each) for each in larger],
        "quadratics": [asdict(each) for each in floors],
        "digits": {
            "grids": {method: list(map(asdict, each)) for method, each in grids.items()},
            "finals": list(map(asdict, digits)),
        },
        "plm": [asdict(each) for each in plm],
    }
    (DOCS / "error_feedback.json").write_text(json.dumps(finite(report), indent=1) + "\n")
    draw(descents, floors, digits, plm, DOCS / "error_feedback.png")
    print("written: docs/error_feedback.json, docs/error_feedback.png")


def kept(path: Path, kind: type[Kind], make: Callable[[], Sequence[Kind]]) -> list[Kind]:
    """What was made before, or is made now."""
    if not path.exists():
        path.write_text(json.dumps([asdict(each) for each in make()]))
    stored: list[dict[str, Any]] = json.loads(path.read_text())
    return [kind(**each) for each in stored]


def summary(each: Descent) -> dict[str, Any]:
    """A descent, with some of its rounds."""
    every = max(1, len(each.bits) // CURVE_POINTS)
    return {
        "title": each.title,
        "step": each.lr,
        "multiple_of_theory": each.multiple,
        "rounds_to_target": each.rounds_to(LOGISTIC_TARGET),
        "bits_to_target": each.bits_to(LOGISTIC_TARGET),
        "floor": each.floor,
        "curve": list(zip(each.bits[::every], each.squared_norms[::every], strict=True)),
    }


if __name__ == "__main__":
    main()
