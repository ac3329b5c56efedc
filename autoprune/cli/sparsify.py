"""`autoprune sparsify`: zeros among the weights of a model, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli.options import DataOption, DenseOption, ModelOption, SeedOption, TaskOption, given_options, say
from autoprune.cli.progress import LogFileOption, QuietOption, shown_events
from autoprune.cli.tables import JsonOption, show_json, show_table


def sparsify(
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write.")],
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    dense: DenseOption = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            help="sparse:80%, sparse:80%@8x1 (blocks), 2:4, threshold:0.01, mean:1.5 (times the mean score), or "
            "channels:50%, which are cut; none: zeros of --term alone.",
        ),
    ] = "sparse:80%",
    schedule: Annotated[
        str,
        typer.Option("--schedule", help="one-shot, gradual, iterative, adaptive, set, rigl, admm or growing."),
    ] = "one-shot",
    finetune: Annotated[
        str,
        typer.Option(
            "--finetune",
            help="none, bias (and batch norms), least-squares (to the dense layers' outputs), brief (one epoch), "
            "full, or scratch: the same zeros, trained from new weights.",
        ),
    ] = "full",
    scores: Annotated[
        str | None,
        typer.Option(
            "--scores",
            help="What stays: magnitude, taylor, gradient, fisher, hvp, wanda, random, or weighted ranks such as "
            "0.5*magnitude+0.5*taylor.",
        ),
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            "--ranking",
            help="How zeros are divided among layers: lamp (default of sparse:80%), local (default of other patterns), "
            "global, zscore or erk.",
        ),
    ] = None,
    term: Annotated[
        list[str] | None,
        typer.Option(
            "--term",
            help="Penalty or bound of the training with its strength, as in a recipe: l1:0.0001, l2, growing, clip, "
            "group-lasso, l0 or l0-units. Repeatable.",
        ),
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Length of the training.")] = 4.0,
    allowed_drop: Annotated[
        float,
        typer.Option("--allowed-drop", help="Fall of the validation score that iterative and adaptive allow."),
    ] = 0.01,
    seed: SeedOption = None,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model sparse by one schedule, without a search, and write it to a file."""
    from autoprune.config import load_config

    given = given_options(task=task, model=model, data_dir=data_dir, dense=dense, seed=seed)
    config = load_config(None, given)
    with shown_events(quiet, log_file, to_stderr=as_json) as events:
        from autoprune.pipeline.sparse_copy import write_sparse_copy  # takes seconds

        document = write_sparse_copy(
            config, out, events, pattern=pattern, schedule=schedule, finetune=finetune, scores=scores,
            ranking=ranking, terms=term or (), epochs=epochs, allowed_drop=allowed_drop,
        )  # fmt: skip
    if as_json:
        show_json(document)
        return
    from autoprune.report import zeros_table

    show_table(zeros_table(document))
    say(
        f"{100 * document['share_of_zeros']:.1f} % of the weights were made zero; {document['metric']} on test data "
        f"{document['test_score']:.4f}, dense {document['dense_test_score']:.4f}"
    )
    if not pattern.startswith("channels"):
        say("ONNX Runtime computes with zeros as with other numbers: they save bytes of a compressed file, no time")
    say(f"written: {out} ({document['file_bytes'] / 1000:,.1f} kB)")
