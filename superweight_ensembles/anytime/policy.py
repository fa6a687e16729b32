"""When a sample may leave: an order of members and one threshold an exit. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from superweight_ensembles.anytime.confidence import CONFIDENCES
from superweight_ensembles.errors import SuperWeightError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPolicy:
    """After each member, samples that are sure enough leave with the mean prediction of the members so far.

    Attributes:
        order: Members, in the order in which they run; exit e is after member e.
        confidence: How sure a prediction is: a name of :data:`CONFIDENCES`.
        temperatures: Of each exit; the logarithm of the mean is divided by it before the confidence is taken.
        thresholds: Of each exit but the last, where all that are left leave. A sample leaves where its confidence is at
            least the threshold: 0 lets all leave, infinity none.
        monotone: Whether a sample keeps an earlier prediction that was surer than the later one.
        replaces: Of each exit, the earlier exit whose answer its own takes the place of in the mean, or None; empty
            where none does (:func:`replaced_exits`).

    Raises:
        SuperWeightError: No member or one twice, an unknown confidence, numbers missing or out of range.

    Example:
        >>> ExitPolicy(order=("a", "b"), confidence="margin", temperatures=(1.0, 1.0), thresholds=(0.9,)).thresholds
        (0.9,)
    """

    order: tuple[str, ...]
    confidence: str = "margin"
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    monotone: bool = False
    replaces: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        listed = ("order", "temperatures", "thresholds", "replaces")
        for field in listed:  # lists are taken too; tuples compare and hash
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.order or len(set(self.order)) < len(self.order):
            raise SuperWeightError(f"order must name at least one member, and each once; got {list(self.order)}")
        if self.confidence not in CONFIDENCES:
            raise unknown_name("confidence", self.confidence, CONFIDENCES)
        exits = len(self.order)
        for what, values, count in (
            ("temperatures", self.temperatures, exits),
            ("thresholds", self.thresholds, exits - 1),
        ):
            if len(values) != count:
                raise SuperWeightError(f"{exits} members need {count} {what}; got {len(values)}")
        if any(not (0 < value < math.inf) for value in self.temperatures):
            raise SuperWeightError(f"temperatures must be positive and finite; got {list(self.temperatures)}")
        if any(not value >= 0 for value in self.thresholds):
            raise SuperWeightError(f"thresholds must be at least 0; got {list(self.thresholds)}")
        taken = [value for value in self.replaces if value is not None]
        earlier = all(value is None or value in range(index) for index, value in enumerate(self.replaces))
        if len(self.replaces) not in (0, exits) or not earlier or len(set(taken)) < len(taken):
            raise SuperWeightError(
                f"replaces must name for each of {exits} exits an earlier one, each once, or none; got "
                f"{list(self.replaces)!r:.80}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: a threshold that none passes is null."""
        content = asdict(self)
        content["order"], content["temperatures"] = list(self.order), list(self.temperatures)
        content["thresholds"] = [value if value < math.inf else None for value in self.thresholds]
        if not content.pop("replaces"):
            return content
        return {**content, "replaces": list(self.replaces)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "policy") -> ExitPolicy:
        """Read what :meth:`to_dict` made.

        Raises:
            SuperWeightError: Anything else; names the field.
        """
        if not isinstance(content, dict):
            raise SuperWeightError(f"{where} must be an object; got {type(content).__name__}")
        known = set(cls.__dataclass_fields__)
        for key in content:
            if key not in known:
                raise SuperWeightError(f"{where}: {unknown_name('key', str(key), known)}")

        def listed(key: str, kinds: tuple[type, ...]) -> list[Any]:
            values = content.get(key)
            if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, kinds) for v in values):
                raise SuperWeightError(f"{where}: {key} must be a list of {kinds[0].__name__}; got {values!r:.80}")
            return values

        for key, kind in (("confidence", str), ("monotone", bool)):
            if not isinstance(content.get(key), kind):
                raise SuperWeightError(f"{where}: {key} must be {kind.__name__}; got {content.get(key)!r:.80}")
        try:
            return cls(
                order=tuple(listed("order", (str,))),
                confidence=content["confidence"],
                temperatures=tuple(float(value) for value in listed("temperatures", (float, int))),
                thresholds=tuple(
                    math.inf if value is None else float(value)
                    for value in listed("thresholds", (float, int, type(None)))
                ),
                monotone=content["monotone"],
                replaces=tuple(listed("replaces", (int, type(None)))) if "replaces" in content else (),
            )
        except OverflowError:
            raise SuperWeightError(f"{where}: temperatures and thresholds must be numbers that a float holds") from None
        except SuperWeightError as error:
            raise error if str(error).startswith(where) else SuperWeightError(f"{where}: {error}") from None


def replaced_exits(order: Sequence[str], version_of: Mapping[str, str]) -> tuple[int | None, ...]:
    """Which earlier exit each exit takes the place of: the last one that was a version of the same network.

    Args:
        order: Names of the exits.
        version_of: The network that an exit is a version of, by name; others are of their own.

    Returns:
        Of each exit, an index or None; empty where no exit takes the place of another.

    Example:
        >>> replaced_exits(("a@25%", "b", "a@50%", "a"), {"a@25%": "a", "a@50%": "a"})
        (None, None, 0, 2)
        >>> replaced_exits(("a", "b"), {})
        ()
    """
    latest: dict[str, int] = {}
    found: list[int | None] = []
    for index, name in enumerate(order):
        network = version_of.get(name, name)
        found.append(latest.get(network))
        latest[network] = index
    return tuple(found) if len(latest) < len(found) else ()
