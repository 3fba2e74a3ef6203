"""Reports: one self-contained page about a run (:mod:`.run_report`) or about several (:mod:`.comparison`).

Made from the files of the run's folder alone; no model, no script, nothing from outside.
"""
