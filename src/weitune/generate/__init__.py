"""Generation: one engine (:mod:`.engine`) for chat, evaluation and samples, and runs that answer (:mod:`.run`).

    Run ── load ──▶ Engine(model, tokenizer, framing) ── stream ──▶ AnswerStream ──▶ text, piece by piece
                                                   └─── answers ──▶ [Answer]

Importing a module of it imports torch and transformers, but for :mod:`.run`, which imports them when a model is opened.
"""
