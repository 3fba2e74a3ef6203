"""Push an adapter to a hub: write a folder with the adapter, its model card, recipe and template, and upload it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from weitune.errors import InputError, MissingExtraError, RunError, first_line
from weitune.export.destination import MARK, check_destination, written_aside
from weitune.export.hub.model_card import model_card, without_paths
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.files.json_files import write_json
from weitune.files.paths import HUB_ID
from weitune.generate.run import Run
from weitune.gguf.header import read_header
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, holds_model
from weitune.model.load.locate import is_hub_id
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.recipe.load import dump_recipe
from weitune.run.run_folder import Which

Hub = Literal["huggingface", "modelscope"]

_PUBLIC_ON_MODELSCOPE = 5


def write_repository(run: Run, folder: Path, repository: str, *, checkpoint: Which = "last") -> None:
    """Write the folder that :func:`upload` uploads; an earlier one is replaced.

    Raises InputError if ``repository`` is not of the form USER/NAME, or if the run or ``folder`` cannot be used.
    """
    if not re.fullmatch(HUB_ID, repository):
        raise InputError("export.push.not_a_repository", repository=repository)
    check_destination(folder, force=True, kind="repository")
    source = open_export_source(run, checkpoint)
    if holds_model(source.adapter_folder):
        raise RunError("export.push.whole_model", folder=source.adapter_folder, repository=repository)
    with written_aside(folder) as partial:
        shutil.copyfile(source.adapter_folder / ADAPTER_FILES[1], partial / ADAPTER_FILES[1])
        write_json(partial / ADAPTER_FILES[0], _adapter_config(source))
        card = model_card(run, source, repository, base_licence(source))
        (partial / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        (partial / "recipe.yaml").write_text(dump_recipe(without_paths(source.recipe)), encoding="utf-8")
        (partial / "chat_template.jinja").write_text(source.template, encoding="utf-8")
        write_json(partial / MARK, {"format": "repository", "run": source.name})


def upload(folder: Path, repository: str, *, hub: Hub = "huggingface", private: bool = True) -> str:
    """Upload ``folder`` and return the page's address. Raises InputError if the hub refuses or cannot be reached."""
    send = _to_modelscope if hub == "modelscope" else _to_huggingface
    try:
        return send(folder, repository, private)
    except InputError:
        raise
    except Exception as error:
        login = "`modelscope login`" if hub == "modelscope" else "`hf auth login`"
        raise InputError(
            "export.push.upload_failed", folder=folder, repository=repository, reason=first_line(error), login=login
        ) from error


def base_licence(source: ExportSource, ask_hub: Callable[[str], str | None] | None = None) -> str | None:
    """Return the licence of the base, from its own files or its page on the hub; None if neither names it."""
    if source.files.gguf:
        in_header: str | None = read_header(source.files.path).get("general.license")
        return in_header
    if (licence := _licence_on_card(source.files.folder / "README.md")) is not None:
        return licence
    if source.recipe.hub != "huggingface" or not is_hub_id(source.recipe.model):
        return None
    return (ask_hub or _licence_on_hub)(source.recipe.model)


def _licence_on_card(card: Path) -> str | None:
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if head := re.match(r"---\n(.*?)\n---", text, re.DOTALL):
        try:
            fields = yaml.safe_load(head[1])
        except yaml.YAMLError:
            return None
        if isinstance(fields, dict) and isinstance(fields.get("license"), str):
            return str(fields["license"])
    return None


def _licence_on_hub(name: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        card: Any = HfApi().model_info(name, timeout=10).card_data
    except Exception:  # noqa: BLE001  (offline, for example: the card then has no licence)
        return None
    licence = card.get("license") if card else None
    return licence if isinstance(licence, str) else None


def _adapter_config(source: ExportSource) -> dict[str, Any]:
    return {
        **read_adapter_config(source.adapter_folder),
        "base_model_name_or_path": without_paths(source.recipe).model,
        "revision": source.recipe.revision,
    }


def _to_huggingface(folder: Path, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repository, private=private, exist_ok=True)  # changes nothing of one that is there
    if private and api.model_info(repository).private is False:  # mirrors may not say
        raise InputError("export.push.is_public", repository=repository)
    api.upload_folder(
        repo_id=repository, folder_path=folder, ignore_patterns=[MARK], commit_message=say("export.push.commit")
    )
    return str(url)


def _to_modelscope(folder: Path, repository: str, private: bool) -> str:
    try:
        from modelscope.hub.api import HubApi
    except ImportError:
        raise MissingExtraError("modelscope", "modelscope") from None
    api = HubApi()
    licence = _licence_on_card(folder / "README.md")
    named = {} if licence is None else {"license": licence}  # without it, the client states Apache 2.0
    api.create_repo(repository, visibility="private" if private else "public", exist_ok=True, **named)
    if private and api.get_model(repository, revision=None).get("Visibility") == _PUBLIC_ON_MODELSCOPE:
        raise InputError("export.push.is_public", repository=repository)
    api.upload_folder(repo_id=repository, folder_path=str(folder), ignore_patterns=[MARK])
    return f"https://modelscope.cn/models/{repository}"
