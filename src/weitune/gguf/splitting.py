"""How a tokenizer splits text, in the words of a GGUF file.

llama.cpp splits text before BPE of bytes by one of the regular expressions compiled into it, which a file names.
weitune recognises the name from the expressions in tokenizer.json, and has the expressions for the name when it reads
a file (:func:`splitting_of`). Under the names of OpenAI's o200k and Mistral's tekken llama.cpp splits some texts
otherwise (:func:`splits_otherwise`).

Text before BPE of characters is not split. A file says whether a space comes before text: at the beginning, and after
every token that was added to the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from weitune.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKED = _MODERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")
"""With the marks that follow a letter, as Qwen3.5 has it."""
_SEED = _MODERN.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")
"""Without the line ends that follow punctuation, as Seed-Coder has it."""
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(ending)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(ending)s"
    r"|\p{N}%(digits)s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""A word ends before a capital letter, and has the marks that follow a letter."""
_NAMES = {
    (_MODERN % "",): "qwen2",
    (_MARKED % "",): "qwen35",
    (_MODERN % "{1,3}",): "llama-bpe",
    (_SEED % "{1}",): "seed-coder",
    (_GPT2,): "gpt-2",
    (r"\p{N}", _GPT2): "smollm",
    _DEEPSEEK: "deepseek-v3",
}
_SPLIT_OTHERWISE: dict[tuple[str, ...], str] = {
    (_CASED % {"ending": "(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "digits": "{1,3}"},): "gpt-4o",
    (_CASED % {"ending": "", "digits": ""},): "tekken",
}
_WITHOUT_IGNORED_MERGES = {"llama-bpe": "dbrx"}
"""llama.cpp's name for the same expression where a word that is a token must still be merged step by step."""
_SAME_EXPRESSIONS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "llama-bpe",  # SmolLM3
    "lfm2": "llama-bpe",
    "dbrx": "llama-bpe",  # OLMo 2, Granite 4, Phi-4
    "glm4": "llama-bpe",
    "olmo": "gpt-2",  # OLMoE
    "starcoder": "smollm",
    "refact": "smollm",  # Granite 3
    "hunyuan-dense": "deepseek-v3",
    "deepseek-r1-qwen": "qwen2",  # the Qwen 2.5 models that DeepSeek distilled R1 into
}
"""Names that llama.cpp's converter gives to published tokenizers, and weitune's name for what they split by.

Only those whose published expressions are known: under a few more names llama.cpp may only come near them.
"""
_IGNORING_MERGES = {"llama-bpe", "llama3", "llama-v3", "smaug-bpe", "lfm2", "tekken"}
_OPENING = {"llama-bpe", "llama3", "llama-v3", "lfm2", "tekken"}
_COMPOSING = {"qwen2", "qwen35", "olmo"}
_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREFIX = {"type": "Prepend", "prepend": "▁"}


class Splitting(NamedTuple):
    """What happens to text before BPE of bytes."""

    patterns: tuple[str, ...]
    """Regular expressions, one after the other. Their matches, and what is between them, become words."""
    ignores_merges: bool
    """A word that is a token becomes that token, whatever the merges say."""
    composes: bool
    """Text is composed first (NFC)."""
    opens: bool
    """The BOS token comes first where a file does not say whether it does."""


def splitting_of(name: str) -> Splitting:
    """Return how the published tokenizers split text that a file's ``name`` for it stands for.

    Raises ModelError if weitune does not know that.
    """
    known = {known: patterns for patterns, known in {**_NAMES, **_SPLIT_OTHERWISE}.items()}
    patterns = known.get(_SAME_EXPRESSIONS.get(name, name))
    if patterns is None:
        raise ModelError("gguf.splitting.unknown_name", name=name)
    return Splitting(patterns, name in _IGNORING_MERGES, name in _COMPOSING, name in _OPENING)


def splitting_name(core: dict[str, Any]) -> str:
    """Return llama.cpp's name for how ``core``, the content of tokenizer.json, splits text before BPE of bytes.

    Raises ModelError if it has none.
    """
    patterns = tuple(_patterns(core["pre_tokenizer"]))
    name = _NAMES.get(patterns) or _SPLIT_OTHERWISE.get(patterns)
    if name is None:
        raise ModelError("gguf.splitting.unknown", patterns=list(patterns))
    for normalizer in _steps(core["normalizer"], "normalizers"):
        if normalizer["type"] != "NFC":
            raise ModelError("gguf.splitting.unknown_normalizer", normalizer=normalizer["type"])
    return name if core["model"].get("ignore_merges") else _WITHOUT_IGNORED_MERGES.get(name, name)


def splits_otherwise(core: dict[str, Any]) -> bool:
    """Return whether llama.cpp splits some texts otherwise than ``core``, under the only name that it has for it.

    Words end at combining marks there (as in Hindi, Thai and Arabic), and not before a capital letter beyond A to Z.
    """
    return core["model"]["type"] == "BPE" and tuple(_patterns(core["pre_tokenizer"])) in _SPLIT_OTHERWISE


def space_before_text(core: dict[str, Any], *, opened: bool) -> bool:
    """Return whether ``core`` puts a space before text, at the beginning and after every added token.

    ``opened``: every prompt begins with an added token, so a space at the very beginning alone never comes. Raises
    ModelError if llama.cpp cannot make characters of text as ``core`` does: spaces as ▁, with or without one in front.
    """
    normalizers = _steps(core["normalizer"], "normalizers")
    splitters = _steps(core["pre_tokenizer"], "pretokenizers")
    if not normalizers and [step["type"] for step in splitters] == ["Metaspace"]:
        return _space_of_metaspace(splitters[0], opened)
    others = [step for step in normalizers if step not in (_SPACE, _PREFIX)]
    if others or normalizers.count(_SPACE) != 1 or normalizers.count(_PREFIX) > 1:
        kinds = [step["type"] for step in others or normalizers] or ["none"]
        raise ModelError("gguf.splitting.unknown_normalizer", normalizer=", ".join(kinds))
    if splitters := [step for step in splitters if not _splits_at_spaces(step)]:
        raise ModelError("gguf.splitting.unknown", patterns=[step["type"] for step in splitters])
    if _PREFIX in normalizers and any(token["normalized"] for token in core["added_tokens"]):
        raise ModelError("gguf.splitting.normalized_tokens")
    return _PREFIX in normalizers


def _space_of_metaspace(step: dict[str, Any], opened: bool) -> bool:
    if step["replacement"] != "▁" or step["split"]:
        raise ModelError("gguf.splitting.unknown", patterns=["Metaspace"])
    if step["prepend_scheme"] == "always":  # but not before text that begins with a space
        raise ModelError("gguf.splitting.space_unless_there")
    if step["prepend_scheme"] == "first" and not opened:
        raise ModelError("gguf.splitting.space_at_beginning")
    return False


def _splits_at_spaces(step: dict[str, Any]) -> bool:
    """Return whether ``step`` splits at spaces, of which none are left when all were written as ▁."""
    return bool(step["type"] == "Split" and step["pattern"] == {"String": " "})


def _patterns(step: dict[str, Any] | None) -> list[str]:
    """Return the regular expressions that split text, in order."""
    return [pattern for part in _steps(step, "pretokenizers") for pattern in _patterns_of(part)]


def _patterns_of(step: dict[str, Any]) -> list[str]:
    match step["type"]:
        case "Split":
            return [_pattern(step)]
        case "Digits":
            return [r"\p{N}" if step["individual_digits"] else r"\p{N}+"]
        case "ByteLevel" if step["add_prefix_space"]:
            return ["ByteLevel, add_prefix_space"]
        case "ByteLevel":
            return [_GPT2] if step["use_regex"] else []
        case other:
            return [str(other)]


def _pattern(step: dict[str, Any]) -> str:
    """Return the expression of a Split whose matches, and what is between them, become parts."""
    if "Regex" not in step["pattern"]:
        return "a literal"
    pattern = str(step["pattern"]["Regex"]).replace("\r", r"\r").replace("\n", r"\n")  # DeepSeek has the characters
    matches_all = r" ?[^\s\p{L}" in pattern and pattern.endswith(r"|\s+")
    isolated = step["behavior"] == "Isolated" and not step["invert"]
    if isolated or (matches_all and step["behavior"] == "Removed" and step["invert"]):
        return pattern
    return f"{step['behavior']}, {'inverted, ' if step['invert'] else ''}{pattern}"


def _steps(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the single steps of a normalizer or pre-tokenizer; ``key`` has those of a sequence."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [single for part in step[key] for single in _steps(part, key)]
