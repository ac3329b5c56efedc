"""Reading YAML files of settings, and the messages about what is wrong in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ValidationError
from yaml.composer import ComposerError

from autoprune.errors import ConfigError, RunFolderError
from autoprune.files import require_plain

_MOST_BYTES, _MOST_VALUES, _LONGEST_TEXT = 1_000_000, 100_000, 4_096


def as_list(value: Any) -> Any:
    """Return one text or whole number as a list of one element, and anything else as it is."""
    return (value,) if isinstance(value, (str, int)) and not isinstance(value, bool) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(as_list)]
"""A list of texts; one text counts as a list of one."""


class _Loader(yaml.SafeLoader):
    """Reads `2:4` as the text that it is; in YAML 1.1 it is a number to the base of 60."""


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str | int:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; `ConfigError` names the file and the line, also of a key that is given twice.

    A small file cannot stand for a large value: aliases that repeat what they name, depth and length have limits.
    """
    try:
        if not path.is_file():
            require_plain(path)  # a device never ends, and a pipe waits for a writer
        elif path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: a file of settings is at most {_MOST_BYTES:,} bytes long")
        text = path.read_text()
        loader = _Loader(text)
        root = loader.get_single_node()
        _refuse_repeated_keys(root)
        if _size(root, {}) > _MOST_VALUES:
            raise ConfigError(f"{path}: aliases (*name) repeat more than {_MOST_VALUES:,} values; write them out")
        value = None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise ConfigError(f"{path}: lists or mappings are nested too deeply, or in themselves") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except ConfigError:
        raise
    except (OSError, RunFolderError, ValueError, OverflowError, TypeError, AttributeError) as error:
        # A tag that does not fit its value raises whatever the conversion does.
        cause = getattr(error, "strerror", None) or shortened(str(error))
        raise ConfigError(f"{path}: cannot be read: {cause}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines; got {type(value).__name__}")
    return value


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return the number of values that a node stands for, with those that aliases repeat; `RecursionError` in a ring.

    Each node is counted once, so that a file that repeats a million values is refused in no time.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    parts = [x for pair in node.value for x in pair] if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def shortened(text: str, most: int = 200) -> str:
    """Return a text, its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def require_usable_texts(value: Any) -> Any:
    """Return values of settings; `ValueError` for a text that no file, host or function can have as its name."""
    parts = value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        require_usable_texts(part)
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
        raise ValueError(f"a text must not hold a NUL or half a character; got {shortened(repr(value))}")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"a text is at most {_LONGEST_TEXT:,} characters long; got {len(value):,}")
    return value


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    """Raise `ComposerError` for a key that is written twice in a mapping; PyYAML keeps the last one without a word."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        waiting += [value for _, value in node.value]
        keys: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in keys:
                raise ComposerError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            keys.add((key.tag, key.value))


def without_booleans(value: Any) -> Any:
    """Return a value that must hold numbers; `ValueError` for booleans, which pydantic would take as 0 and 1."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(part, bool) for part in parts):
        raise ValueError(f"wants numbers (yes, no, on and off are booleans in YAML); got {value!r}")
    return value


def validation_message(source: object, error: ValidationError, known: Iterable[str], nested: Iterable[str] = ()) -> str:
    """Write a pydantic error as one line: file, key, rule, value, and the keys that are known there."""
    parts = []
    for problem in error.errors():
        key = ".".join(str(x) for x in problem["loc"])
        where = f"{key}: " if key else ""
        if problem["type"] == "extra_forbidden":
            names = nested if len(problem["loc"]) > 1 else known
            parts.append(f"unknown key {key!r}{_nearest(key.rpartition('.')[2], names)} (known: {', '.join(names)})")
        else:
            rule = problem["msg"].removeprefix("Value error, ")
            got = "" if "; got" in rule else f", got {shortened(_written(problem['input']))}"
            parts.append(f"{where}{shortened(rule, 1_000)}{got}")
    return f"{source}: " + "; ".join(parts)


def _written(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a number of {int(abs(value).bit_length() / 3.32):,} digits" if isinstance(value, int) else "a value"


def _nearest(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name).replace("-", "_"), list(known), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""
