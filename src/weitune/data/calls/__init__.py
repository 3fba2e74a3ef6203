"""From what a model wrote back to its answer: reasoning, content and function calls.

    tokens ── marks ──▶ text, each control token one character ── reader ──▶ reasoning, content, calls
                                                                     ▲
    the run's chat template ── derive ──▶ form ── prove ─────────────┘

No format of calls is built in. What a template writes for a few known calls shows how it writes any, and before a form
is used, further calls are written with the template and read back.
"""
