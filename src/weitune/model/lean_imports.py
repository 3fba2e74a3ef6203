"""Import transformers' models without what a process on its own never uses: PyTorch's compiler and distributed tensors.

    transformers' models ─┬─▶ torch._dynamo               to decorate functions that nobody compiles
                          └─▶ torch.distributed.tensor    for types of tensors that a single process never has

Both bring SymPy and 900 modules, a third of the time of the import. So :class:`Compiler` stands for ``torch._dynamo``
until something other than a decorator is asked of it: what it has decorated gets the real decorator then, so that
nothing changes but the time. :class:`SymbolicShapes` does the same for the module by which autograd compares shapes.
And transformers remembers that PyTorch cannot distribute, as where it was built without; PyTorch itself can. Python's
search for cycles, which would visit all those modules many times, is put off meanwhile.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from weitune.ranks import launched

_COMPILER = "torch._dynamo"
_VMAP_MODE = "torch._dynamo._trace_wrapped_higher_order_op"
_TENSORS = "torch.distributed.tensor"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_DECORATORS = ("disable", "allow_in_graph", "assume_constant_result")


def import_models() -> None:
    """Import what every model is made of. For the command line: other programs may want all of PyTorch from the start.

    Where processes train together, everything is imported.
    """
    with no_collections():
        if not launched() and _COMPILER not in sys.modules:
            Compiler().stand_in()
            _without_distribution()
            _without_symbols()
        _list_of_models()
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.generation.utils")


@contextmanager
def no_collections() -> Iterator[None]:
    """Put Python's search for cycles off within the block, and never search what has been made by its end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


def _without_distribution() -> None:
    """Have transformers find, and remember, that PyTorch cannot distribute."""
    import torch.distributed
    from transformers.utils.import_utils import is_torch_distributed_available

    with patch.object(torch.distributed, "is_available", return_value=False):
        is_torch_distributed_available()
    if _TENSORS not in sys.modules:  # PEFT takes it for granted that transformers has imported it
        vars(torch.distributed)["tensor"] = _OnDemand(_TENSORS)


def _without_symbols() -> None:
    """Keep autograd from importing SymPy."""
    import torch.fx.experimental

    if _SHAPES not in sys.modules:
        sys.modules[_SHAPES] = vars(torch.fx.experimental)["symbolic_shapes"] = SymbolicShapes()


def _list_of_models() -> None:
    """Import ``transformers.models``, which would read 2,000 files for the list of classes that we have already."""
    from transformers.utils import import_utils

    read = import_utils.create_import_structure_from_path  # which remembers what it returned last

    def remembered(path: str) -> Any:
        return read(Path(path).parent)

    with patch.object(import_utils, read.__name__, remembered):
        importlib.import_module("transformers.models")


class _OnDemand(ModuleType):
    """Stands for a module, which is imported when something of it is used that is not here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what is asked of any module
            raise AttributeError(name)
        return getattr(self.imported(), name)

    def imported(self) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


class SymbolicShapes(_OnDemand):
    """Stands for ``torch.fx.experimental.symbolic_shapes``, which autograd asks whether two shapes are equal."""

    def __init__(self) -> None:
        super().__init__(_SHAPES)

    def expect_true(self, condition: Any, skip: int = 0) -> bool:
        return condition if isinstance(condition, bool) else bool(self.imported().expect_true(condition, skip))

    def sym_eq(self, one: Any, other: Any) -> Any:
        """Return whether two shapes are equal, which may be symbols."""
        numbers = isinstance(one, tuple) and isinstance(other, tuple) and all(type(n) is int for n in (*one, *other))
        return one == other if numbers else self.imported().sym_eq(one, other)


class Compiler(ModuleType):
    """Stands for the package ``torch._dynamo``, which is imported when more is asked for than what follows here."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__path__ = []  # it is a package
        self._finder = _Finder(self)
        for name in _DECORATORS:
            setattr(self, name, functools.partial(self._decorate, name))

    def stand_in(self) -> None:
        """Take the place of the package, and of its module with the mode for ``vmap`` in which masks are made."""
        vmap_mode = ModuleType(_VMAP_MODE)
        vars(vmap_mode)["TransformGetItemToIndex"] = lambda: self.imported(_VMAP_MODE).TransformGetItemToIndex()
        sys.modules.update({_COMPILER: self, _VMAP_MODE: vmap_mode})
        sys.meta_path.insert(0, self._finder)

    @property
    def stands_in(self) -> bool:
        return sys.modules.get(_COMPILER) is self

    def imported(self, name: str = _COMPILER) -> Any:
        """Return a module of the package itself."""
        if self.stands_in:
            sys.meta_path.remove(self._finder)
            del sys.modules[_COMPILER], sys.modules[_VMAP_MODE]
        return importlib.import_module(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.imported(), name)

    def graph_break(self, *_: Any, **__: Any) -> None:
        """End the compiler's graph here; nothing is being compiled."""
        if not self.stands_in:
            self.imported().graph_break(*_, **__)

    def _decorate(self, name: str, function: Callable[..., Any] | None = None, *options: Any, **named: Any) -> Any:
        """Return ``function``, to which the decorator ``name`` is applied as soon as there is a compiler."""
        if function is None:
            return lambda given: self._decorate(name, given, *options, **named)

        @functools.cache
        def decorated() -> Callable[..., Any]:
            result: Callable[..., Any] = getattr(self.imported(), name)(function, *options, **named)
            return result

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            return (function if self.stands_in else decorated())(*arguments, **keywords)

        return call


class _Finder(MetaPathFinder, Loader):
    """Finds modules of a package that ``compiler`` stands for, once the package is imported."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{_COMPILER}."):
            return None
        package = self._compiler.imported()
        return ModuleSpec(name, self) if name in sys.modules else PathFinder.find_spec(name, package.__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]  # which the package itself has imported

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module has been run."""
