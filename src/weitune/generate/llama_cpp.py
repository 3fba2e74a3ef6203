"""llama.cpp in this process (the package ``xllamacpp``): continuous batching, a prompt cache, adapters by request.

    this process  ── HTTP over a socket in a folder only this user can open ──▶  llama.cpp's own server, in threads

(over the loopback address where the system has no such sockets, or no folder with a path short enough for one)

Every request carries a key that only this process knows, so nobody else can use the model. Closing its connection ends
a request early.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from weitune.errors import InputError, MissingExtraError, ModelError
from weitune.generate.sampling import Sampling
from weitune.generate.sse import server_sent_events

_F32 = 0  # GGML_TYPE_F32
_OMP_PAUSE_HARD = 2
_SHARED_CACHE_MIB = 0
"""For prompts that no slot holds. It is off: llama.cpp looks prompts up by their tokens alone, whichever adapter
computed them (its issue 26207)."""
_SOCKET = "llama.sock"
_SOCKET_PATH_BYTES = 107 if sys.platform.startswith("linux") else 103
"""The longest path of a socket; the system would cut a longer one, or refuse it."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (a folder that only this user can open is made there)
"""Where a socket is put if the folder for temporary files (``TMPDIR``) has too long a path."""
_RANDOM_SEED = 2**32 - 1
"""The seed that llama.cpp takes for none."""
_BATCH_TOKENS = 256  # of a prompt, between checks for closed connections; more would stall the other answers


def require_llama_cpp() -> None:
    """Raise MissingExtraError unless ``xllamacpp`` is installed."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError("xllamacpp", "llama-cpp")


class LlamaCpp:
    """A loaded GGUF model with adapters; use it in a ``with`` block or :meth:`close` it."""

    def __init__(
        self,
        model: Path,
        adapters: Sequence[Path] = (),
        *,
        slots: int = 1,
        context_tokens: int = 4096,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        """Load ``model``; ``slots`` answers are generated at once, each with ``context_tokens`` for itself.

        ``exact`` computes attention in float32 and keeps its cache in it, twice the usual size.

        Raises MissingExtraError without ``xllamacpp``, ModelError if llama.cpp cannot open the files.
        """
        require_llama_cpp()
        import xllamacpp

        end_openmp_threads()
        self.slots, self.context_tokens, self.adapters = slots, context_tokens, len(adapters)
        self._key = secrets.token_urlsafe(32)
        self._folder = _socket_folder()
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
        params.lora_init_without_apply = True
        params.n_parallel, params.n_ctx = slots, slots * context_tokens
        params.n_batch = _BATCH_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or usable_cores()
        params.n_threads_http = slots + 4
        params.hostnames = [f"{self._folder.name}/{_SOCKET}" if self._folder else "127.0.0.1"]
        params.api_keys = [self._key]
        params.ui = params.fit_params = False
        params.cache_ram_mib = _SHARED_CACHE_MIB
        params.verbosity = -1
        if exact:
            params.cache_type_k = params.cache_type_v = _F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            self.close()
            raise ModelError("generate.llama_cpp.cannot_open", model=model, error=error) from error
        self._address = str(self._server.listening_address)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server = None
        if self._folder is not None:
            self._folder.cleanup()

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return llama.cpp's answer, decoded from JSON; without ``body`` it is a GET. Raises InputError for errors."""
        connection = self._connect()
        try:
            self._send(connection, path, body)
            return json.loads(_accepted(connection).read())
        finally:
            connection.close()

    def complete(self, body: Mapping[str, Any]) -> Completion:
        """Begin an answer; with ``"stream": False`` in ``body`` it comes as one chunk that has all of its tokens."""
        connection = self._connect()
        body = {"stream": True, **body}
        self._send(connection, "/completion", body)
        return Completion(connection, streamed=body["stream"])

    def body(self, prompt: Sequence[int], sampling: Sampling, adapter: int | None = None) -> dict[str, Any]:
        """Return the body of a request that continues ``prompt`` with the adapter of that number.

        An answer sampled with a seed begins with an empty cache: a prompt computed in other batches differs in the last
        bits, which is enough to sample another of a large vocabulary's rare tokens.
        """
        seed = {} if sampling.seed is None else {"seed": sampling.seed % _RANDOM_SEED}
        sampled = {
            "samplers": ["penalties", "temperature", "top_k", "top_p"],  # the order of transformers
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
        greedy = {"samplers": ["penalties", "top_k"], "top_k": 1}  # no softmax over the vocabulary
        return {
            "prompt": list(prompt),
            "n_predict": sampling.max_new_tokens,
            **(greedy if sampling.greedy else sampled),
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_tokens,
            "cache_prompt": not (seed and sampling.temperature),
            "return_tokens": True,
            "lora": [{"id": i, "scale": float(i == adapter)} for i in range(self.adapters)],
            **seed,
        }

    def _connect(self) -> http.client.HTTPConnection:
        if self._address.startswith("unix://"):
            return _UnixConnection(self._address.removeprefix("unix://"))
        address = urlsplit(self._address)
        return http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port)

    def _send(self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any] | None) -> None:
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, payload, headers)


def _socket_folder() -> tempfile.TemporaryDirectory[str] | None:
    """Return a new folder that only this user can open, for a socket; None if there is none with a short enough path.

    Then llama.cpp is reached over the loopback address, where its key alone keeps others out.
    """
    if not hasattr(socket, "AF_UNIX"):
        return None
    for place in (None, *_SHORT_FOLDERS):
        with suppress(OSError):
            folder = tempfile.TemporaryDirectory(prefix="weitune-", dir=place)
            if len(os.fsencode(f"{folder.name}/{_SOCKET}")) <= _SOCKET_PATH_BYTES:
                return folder
            folder.cleanup()
    return None


class Completion(Iterator[dict[str, Any]]):
    """An answer being generated: chunks with ``content`` (text), ``tokens`` and, in the last one, ``stop_type``."""

    def __init__(self, connection: http.client.HTTPConnection, *, streamed: bool = True) -> None:
        self._connection = connection
        self._socket = connection.sock
        self.closed = threading.Event()
        """Set once the answer is not wanted any more."""
        self._chunks = (_events if streamed else _whole)(connection)

    def __next__(self) -> dict[str, Any]:
        """Return the next chunk. Raises InputError if llama.cpp refuses the request or reports an error."""
        chunk = next(self._chunks)
        if "error" in chunk:
            raise _refused(json.dumps(chunk))
        return chunk

    def close(self) -> None:
        """Stop generating. Another thread may call this while one waits for a chunk: its stream then ends."""
        self.closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def end_openmp_threads() -> None:
    """End the threads that OpenMP keeps for this one, which PyTorch's last large operation left; new ones may follow.

    GNU's OpenMP, which both use, counts all threads it keeps. Once they are more than the cores, those of llama.cpp no
    longer spin but sleep whenever they wait for each other, several hundred times a token: it is then a quarter slower.
    """
    with suppress(OSError, AttributeError):  # another OpenMP, or one before version 5.0
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(_OMP_PAUSE_HARD)


def misses_avx512() -> bool:
    """Return whether this processor has AVX-512 and llama.cpp was built without, as the prebuilt wheel is.

    Built here it gives one answer a tenth more tokens a second, and several a fifth to a third (docs/serve.md).
    """
    import torch
    import xllamacpp

    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AVX512 = 1" not in xllamacpp.get_system_info()


@cache
def takes_grammars() -> bool:
    """Return whether llama.cpp was built with llguidance; a grammar for it would end the process otherwise."""
    import xllamacpp

    return str(xllamacpp.json_schema_to_grammar({"type": "object"})).startswith("%llguidance")


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accepted(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Return the response to the request sent over ``connection``. Raises InputError unless its status is 200."""
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise _refused(response.read().decode(errors="replace"))
    return response


def _events(connection: http.client.HTTPConnection) -> Iterator[dict[str, Any]]:
    """Yield the chunks of the response over ``connection``; none if it is closed before the response begins."""
    try:
        yield from server_sent_events(_accepted(connection))
    except (OSError, http.client.HTTPException, ValueError):
        return
    finally:
        connection.close()


def _whole(connection: http.client.HTTPConnection) -> Iterator[dict[str, Any]]:
    """Yield the response over ``connection`` as the only chunk; nothing if it is closed before."""
    try:
        yield json.loads(_accepted(connection).read())
    except (OSError, http.client.HTTPException, ValueError):
        return
    finally:
        connection.close()


def _refused(text: str) -> InputError:
    try:
        message = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = text[:200]
    return InputError("generate.llama_cpp.refused", message=message)
