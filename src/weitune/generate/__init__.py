"""Generation: one engine (:mod:`.engine`) for chat, evaluation and samples, and a run's folder (:mod:`.run_folder`).

    Run ── load ──▶ Engine(model, tokenizer, framing) ── stream ──▶ AnswerStream ──▶ text, piece by piece
                                                   └─── answers ──▶ [Answer]

Importing a module of it imports torch and transformers, but for :mod:`.run_folder`, which reads folders without them.
"""
