"""A function on each of the trainer's ranks: it prints how large the weights and steps of the first parameters are.

hooks: {after_update: "rank_hooks:sizes"}
"""

from itertools import islice

from verst.runtime.hooks.happenings import AroundUpdate

MOST = 3


def sizes(told: AroundUpdate) -> None:
    """Prints to the log of the rank: `verst logs runs/NAME --process trainer-0`."""
    place = f"step {told.step}, update {told.update} of {told.updates}, {told.weights}"
    print(f"{place}: learning rate {told.optimizer.param_groups[0]['lr']:.2e}")
    for name, parameter in islice(told.model[0].named_parameters(), MOST):
        print(f"{place}: {name} {float(parameter.detach().norm()):.4g}")
