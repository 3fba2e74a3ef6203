"""The recipe: declaration (:mod:`.schema`), reading and writing (:mod:`.load`), and the presets that ship."""
