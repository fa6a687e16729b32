"""Recipe files: YAML of plain data, read within bounds, by a path or by the name of a recipe that the library bundles.

The node graph is checked before any object is made from it.
"""

from __future__ import annotations

import difflib
import re
import stat
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import accessing
from superweight_ensembles.storage.limits import MOST_LEVELS, MOST_VALUES, check_plain

_MOST_BYTES = 2**18
_MOST_NODES = 20_000  # written in the text; aliases may repeat them, up to MOST_VALUES in all
# Numbers of YAML 1.2 that YAML 1.1, which PyYAML reads, takes for text: 3e8, 1e-1, 1.5e3.
_EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_PACKAGE = Path(__file__).parents[1]


def read_yaml(path: Path) -> Any:
    """Read a YAML file as :func:`parse_yaml` does; raises a PathError where it cannot be opened or read."""
    with accessing(path, "read"):
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise SuperWeightError(f"{path} is no regular file: give one, as pipes may never end")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SuperWeightError(f"{path} is longer than {_MOST_BYTES:,} bytes, which no recipe is")
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SuperWeightError(f"{path} is no YAML: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML: no tags that make objects, no key twice, no alias that contains itself or explodes."""
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        # PyYAML lets its converters' errors through: on dates that do not exist, on integers of too many digits.
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise SuperWeightError(f"{where} is no YAML: {said:.400}") from None
    except RecursionError:
        raise SuperWeightError(f"{where} is no YAML: it is nested too deeply") from None
    check_plain(content, where)
    return content


class _Loader(yaml.SafeLoader):
    """The safe loader; it stops while it composes a graph that is too deep or large, or has a cycle or a key twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0
        self._num_values = 0  # with those that aliases repeat, since readers walk through each repetition
        self._values_in: dict[int, int] = {}  # of each complete node, by its id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self._num_values
        self._depth += 1
        self._num_nodes += 1
        self._num_values += 1
        if self._depth > MOST_LEVELS:
            raise _refused(f"more than {MOST_LEVELS} levels of lists and keys in each other", event.start_mark)
        if self._num_nodes > _MOST_NODES:
            raise _refused(f"more than {_MOST_NODES:,} values", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._values_in:
                raise _refused("an alias stands inside what it names", event.start_mark)
            self._num_values = before + self._values_in[id(node)]
        else:
            self._values_in[id(node)] = self._num_values - before
        if self._num_values > MOST_VALUES:
            raise _refused(f"aliases make more than {MOST_VALUES:,} values of it", event.start_mark)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    raise _refused(f"the key {key.value!r:.80} is given twice", key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes texts that the loader would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def dump_yaml(content: Any) -> str:
    """Plain data as YAML that :func:`parse_yaml` reads back unchanged."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True))


def _refused(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def bundled_recipes() -> dict[str, Path]:
    """The files of the bundled recipes by their names; they stand in the package or, in a checkout, beside it.

    Example:
        >>> bundled_recipes()["digits"].name
        'digits.yaml'
    """
    return {path.stem: path for path in sorted(_recipes_folder().glob("*.yaml"), key=lambda path: path.stem)}


def recipe_comment(path: Path) -> str:
    """The first sentence of the comment that a recipe file begins with.

    Example:
        >>> recipe_comment(bundled_recipes()["cifar10-small"])
        'Four small WideResNets on CIFAR-10: hours on two cores, minutes on a GPU.'
    """
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in lines if "yaml-language-server:" not in line)
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def schema_file() -> Path:
    """The JSON schema of recipes, which ``superweights schema`` prints, beside the bundled recipes."""
    return _recipes_folder() / "recipe.schema.json"


def _recipes_folder() -> Path:
    installed, checkout = _PACKAGE / "recipes", _PACKAGE.parent / "recipes"
    return installed if installed.is_dir() else checkout


def recipe_path(given: str | Path) -> Path:
    """The path of a recipe: the one given or, where that is no file, of the bundled recipe of that name."""
    path = Path(given)
    carried = bundled_recipes().get(str(path))
    return path if carried is None or path.is_file() else carried


def no_recipe(path: Path) -> SuperWeightError:
    """An error for a file that is not there: the nearest one beside it or bundled, and where the bundled ones are."""
    carried = bundled_recipes()
    beside = sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    known = {name: name for name in carried} | {other.stem: str(other) for other in beside}
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    folder = next((file.parent for file in carried.values()), None)
    listed = f" By name there are {', '.join(carried)}, in {folder}" if folder else ""
    return SuperWeightError(f"no recipe file {path}{hint or '.'}{listed}")
