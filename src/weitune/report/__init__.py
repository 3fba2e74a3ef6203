"""Self-contained pages: about a run (:mod:`.run_report`), about several (:mod:`.comparison`), about data.

Pages about runs are made from the files of their folders alone; no model is loaded, and a page loads nothing.
"""
