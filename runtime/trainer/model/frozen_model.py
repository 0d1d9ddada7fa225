"""One rank's part of a model that scores tokens beside the trained one, with an architecture of its own: a teacher.

It is split over the ranks as the trained model is, and has no optimizer and no gradients. It is read from its folder in
each life of a run, so checkpoints do not hold it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verst.runtime.messages.model_config import ArgumentValue
from verst.runtime.trainer.model import arguments
from verst.runtime.trainer.model.model import build_frozen_chunks
from verst.runtime.trainer.parallel import Parallel
from verst.sync.hf.folder import import_weights
from verst.sync.hf.model_config import read_model
from verst.sync.layout import layout
from verst.sync.layout.binding import bind


class FrozenModel:
    """A model of a Hugging Face checkpoint, ready to compute log-probabilities.

    `args` and `transformer_config` are Megatron's arguments, and `chunks` the model chunks.
    """

    def __init__(
        self,
        path: str,
        dtype: str,
        megatron: Mapping[str, ArgumentValue],
        parallel: Parallel,
        vocabulary: int,
    ) -> None:
        """Builds the model and reads its weights. `megatron` are the trained model's arguments, whose parallelism and
        kernels it shares, and `vocabulary` is the number of that model's token ids.

        Raises ValueError when the checkpoint does not fit them. Collective over the world.
        """
        family, hf_config = read_model(path, None)
        shape = family.megatron_args(hf_config)
        try:
            self.args, self.transformer_config = arguments.parse(
                megatron, parallel.world_size, shape, dtype=dtype, train_steps=1, rank=parallel.rank
            )
        except arguments.ArgumentFaultsError as error:
            raise ValueError(f"the model in {path} does not fit: {error}") from error
        if self.args.vocab_size < vocabulary:
            raise ValueError(
                f"the model in {path} has {self.args.vocab_size} token ids, and the trained model {vocabulary}: it "
                "knows nothing of some of them"
            )
        self.chunks = build_frozen_chunks(self.args, self.transformer_config)
        sizes = layout.ParallelSizes.from_arguments(self.args)
        bound = bind(layout.Layout(family, hf_config, sizes, parallel.rank), self.chunks)
        import_weights(path, bound)

    def weights(self) -> list[Tensor]:
        """This rank's parameters."""
        return [p.data for chunk in self.chunks for p in chunk.parameters()]
