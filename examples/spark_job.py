"""Entities of a table, by Spark: each Python worker loads the model once and reads its partitions batch by batch.

    python examples/spark_job.py MODEL INPUT.parquet OUTPUT person,place

INPUT is a folder or file in Parquet with a column "text"; OUTPUT has the same columns and one more, "entities". Spark
starts one Python worker a core, so each runs on one thread.
"""

import functools
import sys
from collections.abc import Iterable, Iterator

import pandas as pd

ENTITIES = "array<struct<start: bigint, end: bigint, text: string, label: string, score: double>>"


@functools.cache
def load(name: str):
    """Load the model, once in each Python process, which Spark uses again for its next partitions."""
    import torch

    from glimodern import GLiModern

    torch.set_num_threads(1)
    return GLiModern.from_pretrained(name)


def find_entities(batches: Iterable[pd.DataFrame], model: str, labels: list[str]) -> Iterator[pd.DataFrame]:
    """Add the column "entities" to batches of rows, all of which one stream of predictions reads."""
    waiting: list[pd.DataFrame] = []

    def texts() -> Iterator[str]:
        for batch in batches:
            waiting.append(batch)
            yield from batch["text"]

    found: list[list[dict[str, object]]] = []
    for entities in load(model).predict(texts(), labels):
        found.append(list(entities))
        while waiting and len(found) >= len(waiting[0]):
            batch = waiting.pop(0)
            yield batch.assign(entities=found[: len(batch)])
            del found[: len(batch)]
    yield from (batch.assign(entities=[]) for batch in waiting)  # without rows


def run(spark, model: str, source: str, output: str, labels: list[str]) -> None:
    """Write the rows of a Parquet file or folder with their entities. spark: a SparkSession."""
    from pyspark.sql.types import StructType

    rows = spark.read.parquet(source)
    fields = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in rows.schema.fields)
    schema = StructType.fromDDL(f"{fields}, entities {ENTITIES}")
    rows.mapInPandas(functools.partial(find_entities, model=model, labels=labels), schema).write.parquet(output)


if __name__ == "__main__":
    from pyspark.sql import SparkSession

    run(SparkSession.builder.getOrCreate(), *sys.argv[1:4], sys.argv[4].split(","))
