"""`hanse config schema|show|validate`: what can stand in a config file, and what one comes to."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config import dump, dump_run, read, read_overrides, to_yaml
from core.config import schema as schema_of
from core.errors import ConfigError, HanseError
from core.recipe import TrainRun
from hanse.console import Console, JsonConsole
from hanse.launch import parse_train

KINDS = ("train", "federate")
# A file with any of these keys is a federation's.
FEDERATED = {"rounds", "clients", "cohort", "partition", "local_epochs", "local_steps"}
TREES = "federate trees"  # the verb of a file with a section `trees`


def schema(kind: str, write: Callable[[str], None]) -> int:
    """JSON Schema; in a file of yours: `# yaml-language-server: $schema=train.schema.json` in the first line."""
    if kind not in KINDS:
        raise ConfigError(f"config schema: there is no kind of run '{kind}'; one of {', '.join(KINDS)}")
    from federated.run import FederateRun

    write(json.dumps(schema_of(FederateRun if kind == "federate" else TrainRun), indent=2))
    return 0


def show(file: str, words: Sequence[str], console: Console) -> int:
    """The resolved config: the file, the overrides, and every default. On a pipe it is YAML and nothing else."""
    run, verb = _parsed(file, read_overrides(words))
    mapping = dump_run(run) if verb != TREES else dump(run)
    if isinstance(console, JsonConsole):
        console.end(None, {"config": mapping})
    else:
        console.say(to_yaml(mapping).rstrip())
    return 0


def validate(files: Sequence[str], console: Console) -> int:
    """Looks at every file, also after a wrong one; exit code 2 if one is wrong."""
    wrong, verbs = 0, list[str]()
    for file in files:
        try:
            run, verb = _parsed(file, {})
        except HanseError as error:
            wrong += 1
            console.event("warning", message=str(error) if file in str(error) else f"{file}: {error}", file=file)
        else:
            verbs.append(verb)
            model, data = ("trees", run.data) if verb == TREES else (run.recipe.model.kind, run.recipe.data)
            console.event("valid", message=file, model=model, data=data.path)
    console.end(None, {"valid": len(verbs), "wrong": wrong}, [] if wrong else [f"hanse {verbs[0]} {files[0]}"])
    return ConfigError.exit_code if wrong else 0


def _parsed(file: str, overrides: Mapping[str, Any]) -> tuple[Any, str]:
    """The run that a file describes, and the verb that runs it."""
    mapping = read(file)
    if "trees" in mapping:
        from hanse.federate_trees import parse_trees

        return parse_trees(file, overrides), TREES
    if FEDERATED.isdisjoint(mapping):
        return parse_train(file, overrides), "train"
    from hanse.federate import parse_federate

    return parse_federate(file, overrides), "federate simulate"
