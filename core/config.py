"""Configs: YAML in, frozen dataclasses out, and back. The only file that imports yaml and pydantic.

A config is a plain mapping until `parse` turns it into dataclasses; a dotted override (`optimizer.lr=3e-4`) edits the
mapping before that, and is the only way anything changes a recipe. Unions are told apart by their `kind` key, so the
union type itself is the registry. Every error names the dotted key, what is wrong and, where it can, what was meant.
"""

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from core.errors import ConfigError, blamed
from core.plain import DEEPEST, LONGEST, MOST_VALUES, cut, plain, show

T = TypeVar("T")
Mapped = dict[str, Any]

MOST_BYTES = 1 << 20  # of a config file
REPLACES = {"train.steps": "train.epochs"}  # an override of the first takes the second, which would win, out of a file


# --- reading -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-3` is a float, `no` a string, `010` ten."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, name: str, comments: bool = True) -> Any:
    """Without `comments` a plain scalar with ` #` in it is that text; a quoted one, a list or a mapping is as ever."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: U+{error.character:04X} is no printable character") from None
    loader.name = name
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    finally:
        loader.dispose()
    is_plain = node is None or (isinstance(node, yaml.ScalarNode) and node.style is None)
    if is_plain and not comments and re.search(r"(?:^|\s)#", text):
        return text.strip()
    return None if node is None else _Nodes(name).value(node)


class _Nodes:
    """Makes plain values of YAML nodes: PyYAML's own constructors read "010" as octal and "1:30" as base 60, take a
    mapping's key twice, and make objects of tags."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        """ConfigError for what is no plain value, nests in itself, or grows past all bounds by its aliases."""
        where = f"{self._name}:{node.start_mark.line + 1}"
        self._count += 1
        if depth > DEEPEST or self._count > MOST_VALUES:
            limit = f"more than {DEEPEST} levels" if depth > DEEPEST else f"more than {MOST_VALUES:,} values"
            raise ConfigError(f"{where}: nests too deeply or repeats its aliases too often: {limit}")
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, depth + 1) for item in node.value]
        try:
            return _SCALARS[tag](node.value)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{where}: cannot be read as !!{tag}; a config holds texts, numbers, true, false, null, lists and "
                "mappings, without tags"
            ) from None

    def _mapping(self, node: yaml.MappingNode, depth: int) -> Mapped:
        found: Mapped = {}
        lines: dict[str, int] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._name}:{line}: a key is a word, not a list or a mapping")
            key = str(key_node.value)
            if key in found:
                raise ConfigError(
                    f"{self._name}:{line}: key '{key}' appears twice (first in line {lines[key]}); keep one"
                )
            found[key], lines[key] = self.value(item, depth + 1), line
        return found


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def read(path: str | Path) -> Mapped:
    """The mapping in a YAML file. Raises ConfigError if it is missing, not YAML, or not a mapping."""
    try:
        with blamed(ConfigError, str(path)), Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
            text = content.decode("utf-8")
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        folder = Path(path).parent
        near = difflib.get_close_matches(Path(path).name, [p.name for p in folder.glob("*.yaml")], n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: is larger than {MOST_BYTES >> 20} MB; a config is a few lines")
    return read_text(text, str(path))


def read_text(text: str, name: str) -> Mapped:
    """The mapping in YAML text; `name` is for messages. Raises ConfigError."""
    data = _parse_yaml(text, name)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: a config is a mapping of keys, this file holds a {type(data).__name__}")
    return data


def read_overrides(words: Iterable[str]) -> Mapped:
    """`["train.steps=50", "model.channels=[8,16]"]` -> {"train.steps": 50, "model.channels": [8, 16]}."""
    overrides: Mapped = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}' is not an override; write key=value, for example train.steps=50")
        if key in overrides:
            raise ConfigError(f"{key} is given twice on the command line; keep one")
        # a lone hyphen is standard input for most commands, and not YAML's list of nothing
        overrides[key] = value if value == "-" else _parse_yaml(value, f"override {key}", comments=False)
    return overrides


# --- overriding ----------------------------------------------------------------------------------------------------


def apply(mapping: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapped:
    """A new mapping with dotted overrides applied. Changing a `kind` resets the other keys of its section."""
    result: Mapped = plain(mapping)
    for key, other in REPLACES.items():
        if key in overrides and overrides.get(other) is not None:
            raise ConfigError(f"{key}: {other} is given too, and only one of them counts; keep one")
    kinds_first = sorted(overrides.items(), key=lambda item: not item[0].endswith(".kind"))
    for dotted, value in kinds_first:
        *parents, last = dotted.split(".")
        section = result
        for i, name in enumerate(parents):
            below = section.get(name)
            if below is None:
                below = section[name] = {}
            elif not isinstance(below, dict):
                raise ConfigError(
                    f"{dotted}: '{'.'.join(parents[: i + 1])}' is a value ({show(below)}), it has no keys"
                )
            section = below
        if last == "kind" and section.get("kind") != value:
            section.clear()
        section[last] = plain(value, dotted)
        if dotted in REPLACES and REPLACES[dotted] not in overrides:
            section.pop(REPLACES[dotted].rpartition(".")[2], None)
    return result


def override(config: T, overrides: Mapping[str, Any]) -> T:
    """The same dataclass with dotted overrides applied: `override(recipe, {"optimizer.lr": 3e-4})`."""
    return parse(type(config), apply(dump(config), overrides))


# --- parsing -------------------------------------------------------------------------------------------------------


def parse(cls: type[T], value: Any, path: str = "") -> T:
    """A dataclass from a plain mapping. Raises ConfigError with the dotted key at the first thing that does not fit."""
    return typing.cast(T, _parse_dataclass(cls, plain(value, path), path))


def parse_run(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """A run from a mapping in which the keys of the recipe that it holds stand beside its own."""
    recipe = _hints(typing.cast(Any, cls))["recipe"]
    own = {f.name for f in dataclasses.fields(typing.cast(Any, cls))} - {"recipe"}
    inner = {f.name for f in dataclasses.fields(recipe)}
    for key in mapping:
        if key not in own | inner:
            raise ConfigError(_unknown(key, key, [*inner, *own], ""))
    held = parse(recipe, {key: value for key, value in mapping.items() if key in inner})
    return parse(cls, {"recipe": held, **{key: value for key, value in mapping.items() if key in own}})


def _parse_dataclass(cls: Any, value: Any, path: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'config'}: expected keys of {cls.__name__}, got {show(value)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise ConfigError(_unknown(_join(path, str(key)), str(key), fields, path))
    hints = _hints(cls)
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _parse_value(hints[name], value[name], _join(path, name), _default(field))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(path, name)}: required key is missing")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:  # range checks of __post_init__: their text starts with the field's name
        raise ConfigError(cut(_join(path, str(error)).replace(" ", ": ", 1), 4 * LONGEST)) from None


def _parse_value(hint: Any, value: Any, path: str, default: Any) -> Any:
    each = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if each is not None and _dataclasses_of(each):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{path}: expected a list of sections with a kind, got {show(value)}")
        return tuple(_parse_value(each, one, f"{path}.{i}", None) for i, one in enumerate(value))
    members = _dataclasses_of(hint)
    if not members:
        return _parse_leaf(hint, value, path)
    if isinstance(value, tuple(members)):
        return value
    if value is None and type(None) in typing.get_args(hint):
        return None
    if len(members) == 1 and "kind" not in {f.name for f in dataclasses.fields(members[0])}:
        if isinstance(value, Mapping | members[0]) or len(typing.get_args(hint)) == 0:
            return _parse_dataclass(members[0], value, path)
        return _parse_leaf(hint, value, path)
    kinds = {_kind(member): member for member in members}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a section with a kind ({', '.join(kinds)}), got {show(value)}")
    kind = value.get("kind", getattr(default, "kind", None))
    if kind is None:
        raise ConfigError(f"{path}.kind: required key is missing; one of {', '.join(kinds)}")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"{path}.kind: unknown kind {show(kind)}{_did_you_mean(str(kind), kinds)}; one of {', '.join(kinds)}"
        )
    return _parse_dataclass(kinds[kind], value, path)


def _parse_leaf(hint: Any, value: Any, path: str) -> Any:
    try:
        # JSON in strict mode: lists become tuples, and neither "5" nor true becomes a number
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        problems = error.errors()
        first = min(problems, key=lambda e: len(e["loc"]))
        said = " or ".join(
            dict.fromkeys(p["msg"].removeprefix("Input should be ") for p in problems if p["loc"] == first["loc"])
        )
        raise ConfigError(f"{path}: should be {said}, got {show(value)}") from None


@functools.cache
def _adapter(hint: Any) -> "pydantic.TypeAdapter[Any]":
    return pydantic.TypeAdapter(hint)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _dataclasses_of(hint: Any) -> list[Any]:
    """The dataclasses in a hint: of a union its members, else itself or nothing."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [t for t in (typing.get_args(hint) if union else (hint,)) if dataclasses.is_dataclass(t)]


def _kind(cls: Any) -> str:
    return str(next(f.default for f in dataclasses.fields(cls) if f.name == "kind"))


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _unknown(dotted: str, key: str, known: Iterable[str], path: str) -> str:
    hint = _did_you_mean(key, known) or f"; '{path or 'a config'}' has the keys {', '.join(known)}"
    return f"{dotted}: unknown key{hint}"


# --- writing -------------------------------------------------------------------------------------------------------


def dump(config: Any) -> Mapped:
    """The plain mapping (dicts, lists, numbers, strings) of a config dataclass; `parse` takes it back unchanged."""
    return typing.cast(Mapped, json.loads(json.dumps(dataclasses.asdict(config))))


def dump_run(run: Any) -> Mapped:
    """The plain mapping of a run, with its recipe's keys beside its own; `parse_run` takes it back unchanged."""
    mapping = dump(run)
    return {**mapping.pop("recipe"), **mapping}


def to_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that `read` takes back unchanged."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 readers would misread, and writes floats so that every reader sees a float."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar(
        "tag:yaml.org,2002:float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    )


_Dumper.add_representer(float, _represent_float)


def schema(cls: type) -> Mapped:
    """JSON Schema of a run's config file, for editors: unknown keys are marked, kinds are completed."""
    result: Mapped = pydantic.TypeAdapter(cls).json_schema()
    recipe = result["$defs"].pop("Recipe")
    result["properties"].pop("recipe")
    result["properties"] = {**recipe["properties"], **result["properties"]}
    result["required"] = recipe.get("required", [])
    for section in [result, *result.get("$defs", {}).values()]:
        if section.get("type") == "object":
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}
