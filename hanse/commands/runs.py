"""`hanse runs list|show|compare|remove`: what has been trained here. Standard library only: it comes at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError
from core.storage.store import Run, find_run, is_run, list_runs, read_run, runs_root
from core.storage.store import remove as remove_run
from hanse.console import Console, JsonConsole
from hanse.format import HEADLINES, duration, number, size
from hanse.output import output, rows_as_text


def table(console: Console) -> int:
    """Every run, the newest first."""
    root = runs_root()
    found = list_runs(root)
    if found:
        console.rows("run", [_row(run) for run in found])
    count = {"runs": len(found)}
    console.end(root, count, ["hanse runs show latest"] if found else ["hanse train configs/train/digits.yaml"])
    return 0


def show(reference: str, console: Console) -> int:
    """One run: its record, its numbers, and what it lies in."""
    run = find_run(runs_root(), reference)
    summary, record = run.summary(), run.record
    if isinstance(console, JsonConsole):
        console.event("run", record=record, status=run.status, size_bytes=_size(run.path), config=run.config())
        console.end(run.path, summary)
        return 0
    data = record.get("data", {})
    fields = {
        "status": run.status,
        "started": str(record.get("start", "-")).replace("T", " "),
        "seed": record.get("seed", "-"),
        "workers": record.get("workers", "-"),
        **_progress(run, summary),
        "size": size(_size(run.path)),
        "data": f"{data.get('path', '-')}  sha256 {str(data.get('sha256', '-'))[:12]}",
        **({"error": record["error"]} if record.get("error") else {}),
    }
    console.header(f"run  {run.id}", fields)
    if summary:
        console.rows("metric", _scores(summary))
    files = [
        name
        for name in ("report.html", "config.yaml", "metrics.jsonl", "predictions.csv", "model")
        if (run.path / name).exists()
    ]
    is_model = (run.path / "model" / "config.json").exists()
    if "model" in files and not is_model and not (run.path / "model" / "booster.json").exists():
        files.remove("model")
    console.say(f"files   {'  '.join(files)}")
    console.end(run.path, {"status": run.status}, [f"hanse evaluate {run.id}"] if summary and is_model else [])
    return 0


def _scores(summary: Mapping[str, Any]) -> list[dict[str, object]]:
    """The metrics; of a repeat those of its members in the mean, and of the ensemble."""
    ensemble = summary.get("ensemble")
    of = {"mean of members": summary["metrics"], "ensemble": ensemble["metrics"]} if ensemble else {}
    rows = of or {summary["split"]: summary["metrics"]}
    return [
        {"of" if of else "split": name, **{k: number(v) for k, v in metrics.items()}} for name, metrics in rows.items()
    ]


def compare(words: Sequence[str], force: bool, console: Console) -> int:
    """Where the configs of runs differ, and their metrics, side by side; into a file too where `out=` names one."""
    named = next((word.removeprefix("out=") for word in words if word.startswith("out=")), None)
    out = output(named, (".html", ".csv", ".jsonl"), force)
    references = [word for word in words if not word.startswith("out=")]
    if len(references) < 2:
        raise ConfigError("runs compare: name two runs or more; `hanse runs list` shows them")
    found = [find_run(runs_root(), reference) for reference in references]
    configs = [dict(_config_leaves(run)) for run in found]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key, "-") for config in configs}) > 1]
    metrics = [run.summary().get("metrics", {}) for run in found]
    names = list(dict.fromkeys(name for metric in metrics for name in metric))

    def row(what: str, values: Sequence[str]) -> dict[str, object]:
        return {"what": what, **{run.id: value for run, value in zip(found, values, strict=True)}}

    rows = [row(key, [config.get(key, "-") for config in configs]) for key in differing]
    rows += [row(name, [_cell(metric.get(name)) for metric in metrics]) for name in names]
    if rows:
        console.rows("difference", rows)
    said = {"config keys that differ": len(differing), "metrics": len(names)}
    text = rows_as_text(rows, out.ending) if out else ""
    if out and out.ending == ".html":
        from hanse.report.comparison import compare_pages

        text = compare_pages(found, [row for row in rows if row["what"] in differing])
    file = out.write(text) if out else None
    console.end(runs_root(), said, [f"hanse runs show {found[0].id}"], file)
    return 0


def remove(references: Sequence[str], console: Console) -> int:
    """Removes runs. Each must be named by its whole name or its path, so that nothing goes by mistake."""
    found = [_named(reference) for reference in references]  # all before any: a typo removes nothing
    freed = 0
    for run in found:
        freed += _size(run.path)
        remove_run(run)
        console.event("removed", message=str(run.path))
    console.end(runs_root(), {"runs removed": len(found), "freed": size(freed)}, ["hanse runs list"])
    return 0


def _named(reference: str) -> Run:
    exact = runs_root() / reference
    if reference != "latest" and is_run(exact) and not exact.is_symlink():
        return read_run(exact)
    if is_run(Path(reference)) and not Path(reference).is_symlink():
        return read_run(Path(reference))
    meant = find_run(runs_root(), reference)  # raises if it is nothing at all
    raise DataError(f"{reference}: removing takes the whole name of a run; did you mean {meant.id}?")


def _row(run: Run) -> dict[str, object]:
    try:
        summary = run.summary()
    except DataError:
        summary = {}
    metrics = summary.get("metrics", {})
    name = next((name for name in HEADLINES if name in metrics), None)
    return {
        "run": run.id,
        "status": run.status,
        "metric": f"{summary['split']} {name} {number(metrics[name])}" if name else "-",
        "progress": " ".join(f"{count} {name}" for name, count in _progress(run, summary).items()),
        "age": _age(run.record.get("start")),
        "size": size(_size(run.path)),
    }


def _progress(run: Run, summary: Mapping[str, Any]) -> dict[str, str]:
    """How far a run is: its steps, or of a federation its rounds."""
    is_federated = str(run.record.get("verb")).startswith("federate")
    one, name = ("round", "rounds") if is_federated else ("step", "steps")
    if name in summary:
        return {name: number(summary[name])}
    try:
        records = run.metrics()
    except DataError:
        return {name: "-"}
    return {name: number(records[-1].get(one, 0)) if records else "-"}


def _age(start: object) -> str:
    if not isinstance(start, str):
        return "-"
    seconds = (datetime.now().astimezone() - datetime.fromisoformat(start)).total_seconds()
    return duration(seconds) if seconds < 86400 else f"{seconds / 86400:.0f} days"


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _cell(value: object) -> str:
    return number(value) if isinstance(value, int | float) else "-"


def _config_leaves(run: Run) -> Iterator[tuple[str, str]]:
    from core.config import read  # yaml is only needed here

    yield from _leaves(read(run.path / "config.yaml"), "")


def _leaves(mapping: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)
