"""Training: from a recipe to a run's adapter.

run            what :func:`weitune.train` and `train --resume` do, in order
session        the process at work, its lock and its peers
inputs         model files, tokenizer, framing, prepared data, plan
prepared_run   inputs, model and loop together, ready for the first step
build          from a loaded model to a loop: adapter and fast paths; its result is a trainable
loop, passes   one optimizer step: split, forward and backward, clip, update
optim          AdamW, learning rate, the seed of a step
record         events, checkpoints and the final adapter
resume         what a stopped run was, and what may differ
validation     evaluations while training, and early stopping (validation_history)
run_plan       `weitune plan`: forecasts, with timing for measured steps
"""
