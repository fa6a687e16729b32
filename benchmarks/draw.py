"""Draw the figure of a benchmark from the file that it wrote: growth.json, npas.json or learned_widths.json.

python benchmarks/draw.py benchmarks/results/growth --out figures/growth
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growth_figure import Growth, growth_curves
from learned_widths_figure import LearnedWidths, learned_widths
from matplotlib.figure import Figure
from npas_figure import Npas, npas_budgets

from superweight_ensembles.errors import SuperWeightError, naming
from superweight_ensembles.report.figures import save_figures
from superweight_ensembles.storage import read_as

# By the name of the benchmark and of its file.
FIGURES: dict[str, tuple[type, Callable[[Any], Figure]]] = {
    "growth": (Growth, growth_curves),
    "npas": (Npas, npas_budgets),
    "learned_widths": (LearnedWidths, learned_widths),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the benchmark's file")
    parser.add_argument("--out", type=Path, help="folder for the figure; FOLDER/figures where not given")
    options = parser.parse_args()
    out = options.out or options.folder / "figures"
    try:
        drawn = draw_benchmark(options.folder, out)
    except (SuperWeightError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{len(drawn)} figure: {out}")


def draw_benchmark(folder: Path, out: Path) -> list[Path]:
    """Draw what a benchmark wrote into a folder.

    Raises:
        SuperWeightError: No file of a benchmark that has a figure, or a damaged one.
    """
    name = next((name for name in FIGURES if (folder / f"{name}.json").is_file()), None)
    if name is None:
        raise SuperWeightError(f"{folder} holds none of {', '.join(f'{name}.json' for name in FIGURES)}")
    kind, draw = FIGURES[name]
    file = folder / f"{name}.json"
    with naming(file):
        return save_figures({draw.__name__: draw(read_as(kind, file, "measure again"))}, out)


if __name__ == "__main__":
    main()
