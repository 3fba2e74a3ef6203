"""One chat template for vLLM that frames the requests to each model as that model needs.

    {%+ if weitune_model in ["captain"] %}       the run's framing, with its system prompt
    {%+ elif weitune_model in ["base"] %}        the base's own template
    {%+ else %}{{- raise_exception(…) }}{%+ endif %}

The variable comes from the middleware in :mod:`.middleware`. Each part renders as it does alone: the plus signs keep
the space before a tag, and the line break that Jinja drops after a tag stands for the beginning of a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from weitune.messages import in_english, say
from weitune.serve.vllm.middleware import VARIABLE


def template_by_model(texts: Mapping[str, str]) -> str:
    """Return the template that renders as ``texts[model]`` when :data:`VARIABLE` is ``model``.

    If all templates are the same, that template is returned, which needs no variable.
    """
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    parts = []
    for i, (text, group) in enumerate(names.items()):
        listed = json.dumps(group, ensure_ascii=False)
        parts.append(f"{{%+ {'elif' if i else 'if'} {VARIABLE} in {listed} %}}\n{_without_last_break(text)}")
    unknown = json.dumps(in_english(say("serve.template.unknown_model")))
    return "".join(parts) + f"{{%+ else %}}{{{{- raise_exception({unknown}) }}}}{{%+ endif %}}"


def _without_last_break(text: str) -> str:
    """Return ``text`` without the line break at its end, which Jinja drops where a template ends."""
    return re.sub(r"(\r\n|\r|\n)\Z", "", text)
