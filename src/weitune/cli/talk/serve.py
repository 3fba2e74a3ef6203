"""``weitune serve``: an OpenAI-compatible server for runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weitune.cli.shared.open_runs import opened
from weitune.cli.shared.options import (
    accept_changed_base_option,
    adapter_base_option,
    adapter_option,
    adapter_system_option,
    gguf_type_option,
)
from weitune.errors import InputError, MissingExtraError
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.generate.run import Run
    from weitune.serve.guard import Guard

_VLLM_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""vLLM's names of GGUF types that it supports."""


def _count(name: str, default: int | None, about: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, type=click.IntRange(1), default=default, show_default=default is not None, help=about)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="[NAME=]RUN…")
@click.option(
    "--engine",
    type=click.Choice(["llama.cpp", "vllm"]),
    default="llama.cpp",
    show_default=True,
    help="llama.cpp in this process, or vLLM on GPUs.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: a free one.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="WEITUNE_API_KEY",
    show_envvar=True,
    help="Key that clients must send. One is made up where others can reach the server.",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another name the server may be asked for by.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A web site whose pages may use the server, such as https://chat.example.org; '*' for all, with "
    "--api-key only. May be given several times.",
)
@adapter_option(", of every run", not_base="cli.serve.base_is_always_served")
@gguf_type_option(help="Type of the base's matrices; in vLLM F32, F16 or BF16.")
@_count("--slots", 4, "Answers generated at the same time.")
@_count("--queue", 32, "Answers that may wait; beyond, clients get 429.")
@_count("--context", 4096, "Tokens of prompt and answer together.")
@_count("--max-tokens", 2048, "Longest answer that may be asked for.")
@_count("--max-n", 4, "Answers that one request may ask for.")
@_count("--max-body", 4 << 20, "Bytes of a request's body.")
@_count("--threads", None, "Cores to compute on.  [default: all]")
@click.option("--dry-run", is_flag=True, help="Print what would be started, and start nothing.")
@adapter_base_option
@adapter_system_option
@accept_changed_base_option
def command(
    runs: tuple[str, ...], model: str | None, system: str | None, accept_changed_base: bool, **options: Any
) -> None:
    """Serve the runs in the folders RUN to clients of the OpenAI API, all on one copy of their base model.

    RUN may also be the folder of an adapter that was made elsewhere, as PEFT writes it.

    \b
      weitune serve runs/mine
      weitune serve captain=runs/a storyteller=runs/b --port 9000

    The `model` of a request names a run (its folder's name, or NAME), or `base`. A run's system prompt applies when a
    request has none. Without `temperature`, answers are greedy, as those of `weitune chat`.
    """
    from weitune.cli.shared.terminal import quiet_libraries, working

    with working(say("cli.serve.starting")):  # importing the libraries takes seconds
        quiet_libraries()
        from weitune.serve.named_runs import named_runs

        paths = [run if Path(run).exists() else run.rpartition("=")[2] for run in runs]
        open_one = opened(paths, model=model, system=system, accept_changed_base=accept_changed_base)
        served = named_runs(list(runs), open_one)
    (_serve_vllm if options["engine"] == "vllm" else _serve_here)(served, **options)


def _serve_here(
    runs: dict[str, Run], *, host: str, port: int, gguf_type: Any, checkpoint: Any, dry_run: bool, **options: Any
) -> None:
    from weitune.cli.shared.terminal import Stages, console
    from weitune.export.llama_models import llama_models
    from weitune.generate.llama_cpp import misses_avx512, require_llama_cpp

    require_llama_cpp()
    try:
        from weitune.serve.http import Server, listen
    except ImportError:
        raise MissingExtraError("uvicorn", "serve") from None
    from weitune.serve.local import Capacity, serve
    from weitune.serve.requests.request import Limits

    guard = _guard(host, options)
    capacity = Capacity(options["slots"], options["queue"], options["context"], options["threads"])
    with (
        listen(host, port) as listening,  # so that a port in use is reported before a long preparation
        Stages() as stages,
        llama_models(runs, gguf_type, stages.begin, checkpoint) as models,
    ):
        stages.end()
        show = partial(console().print, markup=False)
        for name, model in models.by_name.items():
            if model.system:
                show(say("cli.serve.model_with_system", name=name, system=model.system))
            else:
                show(say("cli.serve.model", name=name))
        if models.short_tokens is not None and options["context"] > models.short_tokens:
            show(say("export.verification.rotates_by_context", tokens=models.short_tokens))
        if misses_avx512():
            show(say("cli.serve.no_avx512"))
        if dry_run:
            show(say("cli.serve.would_serve", model=models.base, host=host, port=port))
            return

        def started(url: str, server: Server) -> None:
            server.stopping = lambda requests: show(say("cli.serve.stopping", count=requests)) if requests else None
            show(say("cli.serve.listening", url=url))

        serve(models, listening, capacity, guard, Limits(options["max_tokens"], options["max_n"]), started=started)


def _serve_vllm(
    runs: dict[str, Run], *, host: str, port: int, gguf_type: Any, checkpoint: Any, dry_run: bool, **options: Any
) -> None:
    from weitune.cli.shared.terminal import console
    from weitune.export.source.export_source import open_export_sources
    from weitune.files.cache import cache_folder
    from weitune.serve.vllm.command import Listening, vllm_command

    opened = open_export_sources(runs, checkpoint)
    guard = _guard(host, options)
    hosts, origins = (tuple(sorted(each)) for each in (guard.hosts, guard.origins))
    listening = Listening(host, port, guard.key, hosts, origins, options["max_body"])
    dtype = _VLLM_DTYPES.get(gguf_type)
    start = vllm_command(opened, cache_folder() / "vllm", listening, context_tokens=options["context"], dtype=dtype)
    for note in start.notes:
        console().print(say("cli.serve.note", note=note), markup=False)
    if dry_run:
        click.echo(str(start))
    else:
        console().print(str(start), markup=False)
        start.run()


def _guard(host: str, options: dict[str, Any]) -> Guard:
    """Return the rules for clients, with a random key if other machines can reach the server and none was given.

    Raises InputError for a key that is empty or that no client could send, and for origins that need a key.
    """
    from weitune.serve.guard import Guard, host_name
    from weitune.serve.origins import NULL, read_origins
    from weitune.serve.vllm.place import ALL, is_loopback

    key = options["api_key"]
    if key is not None and not key.strip():
        raise InputError("cli.serve.blank_api_key")
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError("cli.serve.unsendable_api_key")
    origins = read_origins(options["allow_origin"])
    hosts = frozenset(map(host_name, options["allow_host"]))
    of_any_site = sorted(origins & {ALL, NULL})
    if of_any_site and key is None and is_loopback(host):
        raise InputError("cli.serve.allow_origin_without_key", origin=of_any_site[0])
    if key is None and not is_loopback(host):
        import secrets

        key = secrets.token_urlsafe(24)
        from weitune.cli.shared.terminal import console

        console().print(say("cli.serve.api_key", key=key), markup=False)
    return Guard(host, key, hosts, origins, options["max_body"])
