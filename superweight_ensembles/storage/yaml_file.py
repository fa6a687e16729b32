"""YAML that is data alone, read within bounds: its node graph is looked at before anything is made of it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.limits import MOST_LEVELS, MOST_VALUES, check_plain

MOST_BYTES = 2**18
_MOST_NODES = 20_000  # of the text itself; aliases may repeat them up to MOST_VALUES


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain data.

    Raises:
        SuperWeightError: It is too long, no text, or whatever :func:`parse_yaml` refuses.
        OSError: It cannot be opened or read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise SuperWeightError(f"{path} is longer than {MOST_BYTES:,} bytes, which no recipe is")
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SuperWeightError(f"{path} is no YAML: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML: no tags that make objects, no key twice, no alias that contains itself or multiplies.

    Raises:
        SuperWeightError: Says where, and the line or the key.
    """
    try:
        content = _construct(text)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        # PyYAML lets what its converters raise through: dates that do not exist, integers of too many digits.
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise SuperWeightError(f"{where} is no YAML: {said:.400}") from None
    except RecursionError:
        raise SuperWeightError(f"{where} is no YAML: it is nested too deeply") from None
    check_plain(content, where)
    return content


def _construct(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_graph(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops while it composes a graph that is too deep or too large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._num_nodes += 1
        self._depth += 1
        mark = self.peek_event().start_mark
        if self._depth > MOST_LEVELS:
            raise _refused(f"more than {MOST_LEVELS} levels of lists and keys in each other", mark)
        if self._num_nodes > _MOST_NODES:
            raise _refused(f"more than {_MOST_NODES:,} values", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _check_graph(root: yaml.Node) -> None:
    """Refuse keys given twice, cycles, and aliases that repeat too much: each may be walked through as often."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    left: list[tuple[yaml.Node, bool]] = [(root, False)]
    while left:
        node, done = left.pop()
        if id(node) in sizes:
            continue
        inner = _inner(node)
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in inner)
            if sizes[id(node)] > MOST_VALUES:
                raise _refused(f"aliases make more than {MOST_VALUES:,} values of it", node.start_mark)
            continue
        if id(node) in open_nodes:
            raise _refused("an alias stands inside what it names", node.start_mark)
        _check_keys(node)
        open_nodes.add(id(node))
        left.append((node, True))
        for child in inner:
            if id(child) in open_nodes:
                raise _refused("an alias stands inside what it names", child.start_mark)
            left.append((child, False))


def _check_keys(node: yaml.Node) -> None:
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str":
            if key.value in seen:
                raise _refused(f"the key {key.value!r:.80} is given twice", key.start_mark)
            seen.add(key.value)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refused(problem: str, mark: yaml.Mark | None) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# Recipes by name: those that the library carries, beside its modules or, in a checkout, beside the package.

_PACKAGE = Path(__file__).parents[1]


def bundled_recipes() -> dict[str, Path]:
    """The files of the carried recipes by their names.

    Example:
        >>> bundled_recipes()["digits"].name
        'digits.yaml'
    """
    installed, checkout = _PACKAGE / "recipes", _PACKAGE.parent / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_path(given: str | Path) -> Path:
    """The file that is meant: the one given, or of a name that is no file, the carried recipe of that name."""
    path = Path(given)
    carried = bundled_recipes().get(str(path))
    return path if carried is None or path.is_file() else carried


def no_recipe(path: Path) -> SuperWeightError:
    """An error for a file that is not there: the nearest one beside it or carried, and where the carried ones are."""
    carried = bundled_recipes()
    beside = sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    known = {name: name for name in carried} | {other.stem: str(other) for other in beside}
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    folder = next((file.parent for file in carried.values()), None)
    listed = f" By name there are {', '.join(carried)}, in {folder}" if folder else ""
    return SuperWeightError(f"no recipe file {path}{hint or '.'}{listed}")
