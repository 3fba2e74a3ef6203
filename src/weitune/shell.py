"""Commands for users to copy, quoted for their shell."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path


def shell_command(*words: object) -> str:
    """Return a command line of ``weitune``: ``shell_command("chat", Path("my run"))`` is ``weitune chat 'my run'``.

    A path that begins with a dash would be read as an option; it gets ``./`` in front.
    """
    texts = ["weitune", *(_text(word) for word in words)]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _text(word: object) -> str:
    text = str(word)
    return f".{os.sep}{text}" if isinstance(word, Path) and text.startswith("-") else text
