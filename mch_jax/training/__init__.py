"""Training of a run: its stages up to the codes, and what they share.

run: config, data set, files, and the values that the stages share.
base: stage 1, the base model; base_step is one step of it, alternating is ADSH's kind of training.
paper, cross_fit: stage 2, the two recipes of the agent; policy is what they share.
encode: stage 3, the codes files.
loop: steps, log lines and checkpoints of every stage.
inputs, encodings: batches of training photos; their encodings by a base model.
features, features_file: features of fixed convolutions, computed once or given in a file.
network, streams: the network of a config; the random streams on the host.
parallel, termination: devices and processes; SIGTERM.
logs, events: metrics.jsonl and progress; TensorBoard's files.
validation: the values that the fields of a config may have.
"""
