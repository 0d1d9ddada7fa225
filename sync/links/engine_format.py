"""What engines want their weights in, for a trainer that sends them: whole tensors in, an engine's tensors out.

The engine's own folder says it: the `quantization_config` in its config.json. What comes out is, bit for bit, what
`verst convert` writes into such a folder.
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
    """The format and the tensors that are quantised in it."""

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        """`config` is the engine's config.json, `shapes` of the trainer's tensors by Hugging Face name.

        Raises ValueError for a format that is not known or does not fit a tensor.
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
        # Tensors that share a number over all of them (NVFP4: what the engine fuses) are converted together.
        self.groups: dict[str, set[str]] = defaultdict(set)
        for name in self.taken:
            self.groups[self.format.amax_group(name) if self.format.two_phase else name].add(name)

    @property
    def converts(self) -> bool:
        """Whether anything is changed: an engine without quantisation takes what the trainer has."""
        return not isinstance(self.format, Bf16)

    def grouped(self, names: Iterable[str]) -> list[list[str]]:
        """The names, those that are converted together in one list."""
        group_of = {name: group for group, names in self.groups.items() for name in names}
        found: dict[str, list[str]] = defaultdict(list)
        for name in names:
            found[group_of.get(name, name)].append(name)
        return list(found.values())

    def start(self) -> Conversion:
        """For one pass over all tensors."""
        return Conversion(self)


class Conversion:
    """One pass over a model, bucket by bucket. Holds back what waits for others of its group."""

    def __init__(self, format: EngineFormat) -> None:
        self._of = format
        self._waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)

    def feed(self, names: list[str], tensors: list[torch.Tensor]) -> Named:
        """The next tensors; returns those that can be had now. Raises ValueError for an infinity or a NaN."""
        if not self._of.converts:
            return names, tensors
        given = dict(zip(names, tensors, strict=True))
        made = {name: _kept(tensor) for name, tensor in given.items() if name not in self._of.taken}
        taken = {name: tensor for name, tensor in given.items() if name in self._of.taken}
        made |= self._in_groups(taken) if self._of.format.two_phase else self._of.format.several(taken)
        return list(made), list(made.values())

    def _in_groups(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What these complete of the groups that share an amax."""
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
    """What is not quantised: matrices in bfloat16, vectors as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
