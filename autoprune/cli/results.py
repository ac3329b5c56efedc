"""`autoprune front`, `pick`, `finetune`, `export`, `verify`, `report` and `serve`: the models of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.options import Policy, RunDir, say
from autoprune.cli.progress import LogFileOption, QuietOption, shown_events
from autoprune.cli.tables import JsonOption, show_json, show_table
from autoprune.errors import UsageError
from autoprune.memory import require_address_space
from autoprune.printable import printable

if TYPE_CHECKING:
    from autoprune.report import RunView
    from autoprune.runfolder import RunFolder

_ADVICE = "; `autoprune verify` without --check, or a search that goes on, makes again what can be"


def show(run_dir: Path) -> None:
    """Print the front of a run and how far it can be trusted."""
    from autoprune.report import (
        asked_text,
        form_lines,
        front_table,
        headlines,
        layer_lines,
        noise_lines,
        prediction_line,
        rung_table,
        score_budget_lines,
        trust_lines,
    )
    from autoprune.run_documents import read_front
    from autoprune.runfolder import RunFolder

    folder = RunFolder(run_dir)
    document = read_front(folder)
    for line in (*noise_lines(document), *layer_lines(document)):
        say(line)
    show_table(front_table(document))
    rungs = rung_table(document)
    if rungs.row_count:  # no uniform policy meets the budgets, or the searched one is it
        show_table(rungs)
    for line in (
        *score_budget_lines(document),
        *form_lines(document),
        *trust_lines(document),
        prediction_line(document),
        *headlines(document),
    ):
        say(line)
    for model in document["models"]:
        say(f"{asked_text(document.get('budgets', ()), model['budget'])}: {folder.path / model['onnx']}")


def front(
    run_dir: RunDir,
    format: Annotated[str, typer.Option("--format", help="table, json (as --json) or csv.")] = "table",
    as_json: JsonOption = False,
) -> None:
    """Print the Pareto front of a run."""
    from autoprune.run_documents import read_front
    from autoprune.runfolder import RunFolder

    format = "json" if as_json else format
    document = read_front(RunFolder(run_dir))
    if format == "table":
        show(run_dir)
    elif format == "json":
        print(json.dumps(document, indent=1))
    elif format == "csv":
        from autoprune.pipeline.run import Run

        print(printable(Run.open(run_dir).front(baselines=True).to_csv(index=False)), end="")
    else:
        raise UsageError(f"a front is printed as table, json or csv; got {format!r}")


def pick(
    run_dir: RunDir,
    max_latency: Annotated[str | None, typer.Option("--max-latency", help="Such as 1.2ms, or 50% of dense.")] = None,
    max_params: Annotated[str | None, typer.Option("--max-params", help="Such as 50k, or 50% of dense.")] = None,
    max_macs: Annotated[str | None, typer.Option("--max-macs", help="Multiply-adds of one example, as 10M.")] = None,
    max_bytes: Annotated[str | None, typer.Option("--max-bytes", help="Of the weights, such as 1MB.")] = None,
    max_activation_bytes: Annotated[
        str | None, typer.Option("--max-activation-bytes", help="Peak of one example, such as 100kB.")
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Least score on validation data.")] = None,
    max_drop: Annotated[
        str | None, typer.Option("--max-drop", help="Score below the dense model's: 0.01, or 1% of the dense score.")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The best compromise.")] = False,
    digest: Annotated[bool, typer.Option("--digest", help="Print the digest alone, for other commands.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What it prints without --digest.")] = True,
) -> None:
    """Pick a model off the front; prints its record as JSON."""
    from autoprune.pipeline.document import to_json
    from autoprune.pipeline.run import Run
    from autoprune.report.asked import score_asked

    run = Run.open(run_dir)
    candidate = run.pick(
        max_latency=max_latency, max_params=max_params, max_macs=max_macs, max_bytes=max_bytes,
        max_activation_bytes=max_activation_bytes, min_score=min_score, max_drop=max_drop, knee=knee,
    )  # fmt: skip
    if digest:
        print(candidate.digest)
        return
    record = to_json(candidate.record)
    asked = score_asked(run.document.get("budgets", ()), record["budget"])
    if asked:  # the budget of the record is the latency that the search for a score chose
        record["asked_budget"] = asked
    show_json(record | {"onnx": str(candidate.onnx_path)})


def finetune(
    run_dir: RunDir,
    policy: Policy,
    epochs: Annotated[float, typer.Option("--epochs", help="Epochs of training, from the current weights.")],
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="A control: new weights, same run.")] = False,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model of the run further, export it again and verify it."""
    from autoprune.pipeline.commands import finetune_model, train_from_scratch
    from autoprune.pipeline.document import to_json

    with shown_events(quiet, log_file, to_stderr=as_json) as events:
        if from_scratch:
            shown = asdict(train_from_scratch(run_dir, policy, epochs, events))
        else:
            candidate = finetune_model(run_dir, policy, epochs, events)
            shown = to_json(candidate.record) | {"onnx": str(candidate.onnx_path)}
    if as_json:
        show_json(shown)


def export(
    run_dir: RunDir,
    policy: Policy,
    destination: Annotated[
        Path, typer.Option("--out", help="A file such as small.onnx, or a folder for model, script and page.")
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", help="onnx, pt2, torchscript, openvino, safetensors; default: what --out ends like."),
    ] = None,
    input_names: Annotated[
        str, typer.Option("--input-names", help="Names of the file's inputs in their order, joined by commas.")
    ] = "",
    output_names: Annotated[str, typer.Option("--output-names", help="The same of its outputs.")] = "",
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Hold zeros of an ONNX file as sparse initializers: bytes, no time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model of the run, proven equal, with a script that runs it and a page with its numbers."""
    from autoprune.pipeline.delivery import deliver
    from autoprune.pipeline.run import Run

    names = [text.split(",") if text else [] for text in (input_names, output_names)]
    delivery = deliver(
        Run.open(run_dir).candidate(policy),
        destination,
        format,
        input_names=names[0],
        output_names=names[1],
        sparse=sparse,
    )
    if as_json:
        compared = {"relative_difference": delivery.difference, "allowed_difference": delivery.limit}
        show_json({"format": delivery.format, **{k: str(v) for k, v in vars(delivery.paths).items()}, **compared})
        return
    for path in vars(delivery.paths).values():
        say(str(path))
    say(f"{delivery.paths.model.name}: {delivery}")
    if sparse:
        say("ONNX Runtime makes sparse initializers dense when it loads the file: they save bytes, and no time")


def verify(
    run_dir: RunDir,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Export, compare and measure this model again: its digest.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what would be made again; runs no code of the task.")
    ] = False,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove every file of a run and make again what was changed or is gone; with --policy, measure one model again.

    Exit code 1 says that something is neither proven nor made again.
    """
    if policy is not None:
        from autoprune.pipeline.commands import verify_again

        if check:
            raise UsageError("--check looks at the whole folder; leave it out, or leave out --policy")
        show_json(verify_again(run_dir, policy))
        return
    if not check:
        require_address_space()
    from autoprune.pipeline.folder_check import check_folder

    with shown_events(quiet, log_file, to_stderr=as_json) as events:
        checked = check_folder(run_dir, events, redo=not check)
    if as_json:
        files = [{"name": f.name, "state": str(f.state), "redone": f.redone} for f in checked.files]
        show_json({"run_dir": str(run_dir), "whole": checked.is_whole, "files": files, "problems": checked.problems})
    else:
        for file in checked.files:
            if file.state != "proven":
                say(f"{file.name}: {file.state}" + (", made again" if file.redone else ""))
        for problem in checked.problems:
            say(problem)
        proven = sum(file.is_proven for file in checked.files)
        say(f"{proven} of {len(checked.files)} files are what the run wrote" + ("" if checked.is_whole else _ADVICE))
    if not checked.is_whole:
        raise typer.Exit(1)


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared in one page.")],
    destination: Annotated[Path | None, typer.Option("--out", help="HTML file to write.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a self-contained HTML page of a run, finished or not, or of several beside each other."""
    from autoprune.report import write_report
    from autoprune.runfolder import RunFolder

    path = write_report(_views(run_dirs), destination or RunFolder(run_dirs[0]).report)
    if as_json:
        show_json({"page": str(path)})
        return
    say(str(path))


def serve(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared in one page.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; another than loopback takes a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 0,
    token: Annotated[
        str, typer.Option("--token", envvar="AUTOPRUNE_TOKEN", help="Requests must know it; made where one is needed.")
    ] = "",
) -> None:
    """Show the page of runs live in a browser, while their searches go on; Ctrl-C ends it."""
    from autoprune.report.server import ReportServer
    from autoprune.runfolder import RunFolder

    _views(run_dirs)  # an error now is better than one in the browser
    folders = [RunFolder(run_dir) for run_dir in run_dirs]
    server = ReportServer(
        lambda: _views(run_dirs), lambda: _signature(folders), host=host, port=port, token=token,
        archive=lambda number, digest: _archive(run_dirs[number], digest),
    )  # fmt: skip
    say(f"{server.address} shows {', '.join(map(str, run_dirs))}; Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):
        server.serve()


def _archive(run_dir: Path, digest: str) -> bytes:
    from autoprune.pipeline.delivery import packed
    from autoprune.pipeline.run import Run

    return packed(Run.open(run_dir).candidate(digest))


def _signature(folders: Sequence[RunFolder]) -> object:
    """Return sizes and times of the files of runs; `None` where studies are kept elsewhere, and nobody knows."""
    from autoprune.report.runview import folder_state

    if any(folder.shared_study.exists() for folder in folders):
        return None
    return [folder_state(folder) for folder in folders]


def _views(run_dirs: Sequence[Path]) -> list[RunView]:
    """Read runs for a page; `RunFolderError` when a folder holds none."""
    from autoprune.pipeline import Run
    from autoprune.pipeline.studies import study_location
    from autoprune.report import read_run
    from autoprune.runfolder import RunFolder

    runs = [Run(RunFolder(run_dir)) for run_dir in run_dirs]
    return [read_run(run.folder, run.config.model_dump(), study_location(run.config, run.folder)) for run in runs]
