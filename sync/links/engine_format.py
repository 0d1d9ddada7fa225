"""Converts the trainer's whole tensors into the format of an engine, on their way to it.

The format is the one in the engine's own model folder: `quantization_config` in its config.json. The results are, bit
for bit, the tensors that `verst convert` writes into such a folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from verst.sync.formats import Bf16, of_config
from verst.sync.formats.selection import chosen

Named = tuple[list[str], list[torch.Tensor]]


class EngineFormat:
    """An engine's format, and the tensors that are quantised in it."""

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        """`config` is the engine's config.json; `shapes` are those of the trainer's tensors by Hugging Face name.

        Raises ValueError if the format is not known or does not fit a tensor.
        """
        self.quantization: dict[str, Any] = (
            config.get("quantization_config") or config.get("compression_config") or {}
        )
        self.format, selection = of_config(self.quantization)
        self.taken: frozenset[str] = frozenset()
        if self.quantization:
            self.taken = chosen(shapes, selection)
            for name in sorted(self.taken):
                self.format.check(name, shapes[name])
        # Tensors that share one largest value (NVFP4: tensors that the engine fuses) are converted together.
        self.groups: dict[str, set[str]] = defaultdict(set)
        for name in self.taken:
            self.groups[self.format.amax_group(name) if self.format.two_phase else name].add(name)

    @property
    def converts(self) -> bool:
        """Whether any tensor is changed; an engine without quantisation takes the trainer's tensors as they are."""
        return not isinstance(self.format, Bf16)

    def grouped(self, names: Iterable[str]) -> list[list[str]]:
        """Groups the names into lists of tensors that are converted together."""
        group_of = {name: group for group, names in self.groups.items() for name in names}
        found: dict[str, list[str]] = defaultdict(list)
        for name in names:
            found[group_of.get(name, name)].append(name)
        return list(found.values())

    def start(self) -> Conversion:
        """Starts one pass over all tensors."""
        return Conversion(self)


class Conversion:
    """One pass over a model, bucket by bucket. Holds a tensor back until its whole group has arrived."""

    def __init__(self, format: EngineFormat) -> None:
        self._of = format
        self._waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)

    def feed(self, names: list[str], tensors: list[torch.Tensor]) -> Named:
        """Takes the next tensors; returns the engine's tensors that are complete now.

        Raises ValueError for an infinity or a NaN.
        """
        if not self._of.converts:
            return names, tensors
        given = dict(zip(names, tensors, strict=True))
        made = {name: _kept(tensor) for name, tensor in given.items() if name not in self._of.taken}
        taken = {name: tensor for name, tensor in given.items() if name in self._of.taken}
        made |= self._in_groups(taken) if self._of.format.two_phase else self._of.format.several(taken)
        return list(made), list(made.values())

    def _in_groups(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes tensors of groups that share one amax; returns the results of the groups that are complete now."""
        format = self._of.format
        made: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            group = format.amax_group(name)
            self._waiting[group][name] = tensor
            if self._waiting[group].keys() == self._of.groups[group]:
                members = self._waiting.pop(group)
                amax = torch.stack([format.amax(member) for member in members.values()]).amax()
                for one, member in members.items():
                    made |= format.tensors(one, member, amax=amax)
        return made


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is not quantised: matrices become bfloat16, vectors stay as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
