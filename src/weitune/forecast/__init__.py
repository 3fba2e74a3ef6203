"""What training takes, computed before and beside it.

memory_estimate  the memory of a pass and of a run, by part, from a model's shape: every other module asks this one
meta_model       a model without its weights: its shape, its parameters, and what its architecture can do
own_modules      what a model's own modules keep for backward, measured without computing anything
block_memory     what the blocks of a decoder take, seen while a few of them run
live_memory      how much memory a computation takes at its peak, on tensors without numbers
fake_batch       batches for models of such tensors
workload         the sizes of a run's passes, from its data
host_memory      the memory of this machine, within the limits of containers and jobs
device_memory    the memory of a device now, and the passes that fit in it (``auto``)
run_forecast     whether a run fits a device in one format or another, and what would make it fit
memory_watch     warnings and errors of a run that is under way
gpus             the memory of some GPUs
"""
