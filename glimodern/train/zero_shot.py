"""The data sets whose F1 fine-tuning should keep, and the F1 of a model on them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glimodern.data import Dataset, load_split, with_asked_types
from glimodern.display import cell
from glimodern.model.glimodern import GLiModern

from .canary import canary
from .config import TrainConfig
from .ranks import evaluate_together

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.table import Table


def zero_shot_sets(config: TrainConfig, held_out: Dataset | None, splitter: str) -> dict[str, Dataset]:
    """Return the data sets whose F1 a fine-tuned model should keep, by name: held-out types and the canary."""
    sets = {} if held_out is None else {"held-out types": held_out}
    sources = config.tuning.canary_data
    for source in sources:
        dataset = load_split(source, "dev", skip_bad_rows=config.data.skip_bad_rows, splitter=splitter)
        sets[f"canary: {source}"] = with_asked_types(dataset)
    return sets if sources else {**sets, "canary": canary(splitter)}


def f1_of(
    accelerator: "Accelerator", config: TrainConfig, model: GLiModern, sets: Mapping[str, Dataset]
) -> dict[str, float]:
    """Return the micro F1 of a model on data sets."""
    threshold, long_texts = config.run.threshold, config.data.long_texts
    return {
        name: evaluate_together(accelerator, model, dataset, threshold, autocast=False, long_texts=long_texts).micro.f1
        for name, dataset in sets.items()
    }


def f1_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> "Table":
    """Build a rich table of F1 in percent: {row: {column: F1}}."""
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table("", title=title)
    for column in columns:
        table.add_column(cell(column), justify="right")
    for name, row in rows.items():
        table.add_row(cell(name), *(f"{100 * row[column]:.1f}" for column in columns))
    return table
