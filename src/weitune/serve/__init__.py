"""``weitune serve``: an OpenAI-compatible server around llama.cpp, or around vLLM on GPUs (:mod:`.vllm`).

    client ── HTTP ──▶ guard ──▶ request ───▶ admission ──▶ answering ──▶ llama.cpp
                       key       JSON to      a slot, a     prompt to     one base,
                       host      values       place in      tokens,       every run
                       size                   the queue,    tokens to     an adapter
                       origin                 or 429        text

Every request is checked here, before the engine sees it; the engine only continues tokens.
"""
