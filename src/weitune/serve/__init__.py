"""``weitune serve``: an OpenAI-compatible server on an engine that others keep.

    client ── HTTP ──▶ guard ──▶ protocol ──▶ admission ──▶ answering ──▶ llama.cpp
                       key       request      a slot, a     framed        one base,
                       host      to values    place in      tokens out,   every run
                       size                   the queue,    text back     an adapter
                       origin                 or 429

Who may ask for what is decided here, before the engine hears of it; the engine only continues tokens. On GPUs
:mod:`.command` starts vLLM instead, which speaks the protocol itself.
"""
