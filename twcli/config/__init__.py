"""What the user writes becomes one frozen, validated dataclass a command.

In: keyword arguments or YAML. Out: `TrainConfig` and its like, whose values are within their
bounds. `options` is the machinery; `inputs` holds what several commands share; then a file a
command, named as in `commands/`, and `objective` the loss of `train`, whose weightings are entries
of `weightings`. `phases` names what a command goes through with these settings, and keeps the clock
over it. `twcli export` has its options beside its forms, in `commands/`. Options, their help,
bounds and defaults may be changed here; what a value does is decided by the folder that reads it.
"""
