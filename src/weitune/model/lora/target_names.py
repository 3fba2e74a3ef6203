"""Names of layers: those that PEFT's ``target_modules`` match, the shortest that match given ones, and their kinds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

_IN_A_LIST = re.compile(r"(?P<list>.*?)\.(?P<number>\d+)\.(?P<kind>.+)")
"""The name of a module in a list of modules, such as ``model.layers.3.mlp.up_proj``."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def ends_with(name: str, end: str) -> bool:
    """Return whether ``end`` is the last part, or the last parts, of the name of a module."""
    return f".{name}".endswith(f".{end}")


def pattern_value(pattern: Mapping[str, Any] | None, name: str) -> Any:
    """Return what a pattern of PEFT says of the layer or parameter ``name``: its first key that matches; or None."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), None)


def matches(name: str, target_modules: str | Sequence[str], layers: Collection[int] | None = None) -> bool:
    """Return whether PEFT adapts the module ``name`` by its options ``target_modules`` and ``layers_to_transform``."""
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, name) is not None
    if name in target_modules:
        return True
    if not any(ends_with(name, end) for end in target_modules):
        return False
    number = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return not layers or (number is not None and int(number[1]) in layers)


def shortest_names(wanted: Sequence[str], modules: Iterable[str]) -> list[str] | str:
    """Return the ``target_modules`` with which PEFT adapts ``wanted``, and nothing else among ``modules``.

    These are the shortest ends of names, in the order of ``wanted``, or a regular expression where no ends would do.
    ``modules`` are the names of all modules of the model, ``wanted`` included.
    """
    modules = list(modules)
    every = Counter(end for name in modules for end in _ends(name))
    ours = Counter(end for name in wanted for end in _ends(name))
    ends: dict[str, None] = {}
    for name in wanted:
        end = next((end for end in _ends(name) if every[end] == ours[end]), None)
        if end is None:
            return _pattern(wanted, modules)
        ends[end] = None
    return list(ends)


def shortest_ends(wanted: Sequence[str], parameters: Iterable[str]) -> list[str]:
    """Return the ``target_parameters`` with which PEFT adapts ``wanted``, and nothing else among ``parameters``."""
    every = Counter(end for name in parameters for end in _ends(name, numbers=True))
    ours = Counter(end for name in wanted for end in _ends(name, numbers=True))
    ends = (next((end for end in _ends(name, numbers=True) if every[end] == ours[end]), name) for name in wanted)
    return list(dict.fromkeys(ends))


def _ends(name: str, *, numbers: bool = False) -> Iterator[str]:
    """Yield the ends of ``name``, the shortest first: those that no number is part of, or all."""
    end = ""
    for part in reversed(name.split(".")):
        if part.isdigit() and not numbers:
            return
        end = f"{part}.{end}" if end else part
        yield end


def _pattern(wanted: Iterable[str], modules: Iterable[str]) -> str:
    """Return a regular expression that matches the whole of each of ``wanted`` and no other of ``modules``."""
    places, all_places = _places(wanted), _places(modules)
    kinds_of: dict[tuple[str, str], list[str]] = {}
    for (list_name, kind), numbers in places.items():
        if not list_name:
            chosen = ""
        elif numbers == all_places[list_name, kind]:
            chosen = r"\d+"
        else:
            chosen = f"(?:{'|'.join(map(str, numbers))})"
        kinds_of.setdefault((list_name, chosen), []).append(re.escape(kind))
    return "|".join(
        (rf"{re.escape(list_name)}\.{chosen}\." if list_name else "") + f"(?:{'|'.join(kinds)})"
        for (list_name, chosen), kinds in kinds_of.items()
    )


def _places(names: Iterable[str]) -> dict[tuple[str, str], list[int]]:
    """Return the numbers of modules in lists by (name of the list, name below the number); none for other modules."""
    places: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _IN_A_LIST.fullmatch(name)
        if match is None:
            places["", name] = []
        else:
            places.setdefault((match["list"], match["kind"]), []).append(int(match["number"]))
    return places


def kind_of(name: str, blocks: str) -> str:
    """Return ``name`` without the layer's number, and without the name of the list ``blocks`` that has the layer."""
    below = re.sub(rf"^{re.escape(blocks)}\.\d+\.", "", name) if blocks else name
    return _NUMBER.sub("*", below)


def kinds_text(counts: Mapping[str, int]) -> str:
    """Return kinds of layers with their counts in a line: ``self_attn.q_proj, k_proj ×28; mlp.up_proj ×28``."""
    texts = []
    for (parent, count), group in groupby(counts.items(), key=lambda item: (item[0].rpartition(".")[0], item[1])):
        first, *others = (kind for kind, _ in group)
        names = ", ".join([first, *(other.removeprefix(f"{parent}.") for other in others)])
        texts.append(names if count == 1 else f"{names} ×{count}")
    return "; ".join(texts)
