"""The training prompts of all sources, and which of them a prompt group gets.

Without a curriculum that is a pure function of the group's number.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from verst.runtime.data.config import SourceConfig, TrainConfig
from verst.runtime.data.curriculum import SourceCurriculum
from verst.runtime.data.cursor import row_of
from verst.runtime.data.mixture import Mixture
from verst.runtime.data.prompts import Prompts, load_prompts
from verst.runtime.messages.jobs import Prompt


class Place(NamedTuple):
    """A row of a source."""

    source: str
    row: int  # among those that are not left out


class TrainingPrompts:
    """All sources of `data.train`. A single file is a source with the name ""."""

    def __init__(
        self,
        train: TrainConfig,
        seed: int,
        tokenizer: Any,
        engine_takes: Callable[[SourceConfig], int | None],
    ) -> None:
        """Reads every source. `engine_takes` says how long prompts may be, as in `load_prompts`. Raises DataError."""
        self.configs: Mapping[str, SourceConfig] = train.by_name()
        self.prompts: dict[str, Prompts] = {
            name: load_prompts(config, tokenizer, engine_takes(config), name)
            for name, config in self.configs.items()
        }
        self.curricula = {
            name: SourceCurriculum(name, len(self.prompts[name]), seed)
            for name, config in self.configs.items()
            if config.curriculum is not None
        }
        self._names = list(self.configs)
        self._mixture = Mixture([config.weight for config in self.configs.values()])
        self._seed = seed

    def place(self, position: int) -> Place:
        """The row that the prompt at `position` (0, 1, …) of the run is.

        Each source goes through its own rows pass by pass, each pass in an order that depends on `seed`, the source's
        name and the pass alone: another source or weight does not change it. A source with a curriculum is the
        exception: its rows are drawn as they are needed (`curriculum.py`), and a prompt keeps its row.
        """
        source, number = self._mixture.turn(position)
        name = self._names[source]
        if (curriculum := self.curricula.get(name)) is not None:
            return Place(name, curriculum.row(position))
        seed = zlib.crc32(f"{self._seed}/{name}".encode()) if name else self._seed
        row = row_of(number, len(self.prompts[name]), seed, self.configs[name].shuffle)
        return Place(name, row)

    def source_of(self, position: int) -> str:
        """The name of the source of the prompt at `position`."""
        return self._names[self._mixture.turn(position)[0]]

    def at(self, place: Place) -> Prompt:
        """The prompt."""
        return self.prompts[place.source][place.row]
