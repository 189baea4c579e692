"""Randomness that can be repeated from any epoch on."""

from collections.abc import Mapping

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.data.utils import set_rnd


class EpochSeedHandler:
    """Makes all randomness of an epoch follow from seed, epoch and process, so that a resumed training repeats it.

    When an epoch starts, all generators and the random states of transforms in the loader's data set are seeded, and
    the loader starts anew. In the ``save_dict`` of a checkpoint it keeps the seed the same. Data sets that change with
    time, and random transforms outside of the data set, are not covered.

    Args:
        seed: any whole number from 0.

    Raises:
        ValueError: when the checkpoint has another seed, or the data loader keeps its workers.

    Example::

        >>> trainer = Engine(lambda engine, batch: torch.rand(()).item())
        >>> EpochSeedHandler(seed=3).attach(trainer)
        >>> trainer.run([0], max_epochs=2).output == trainer.run([0], max_epochs=2).output
        True
    """

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: expected a whole number from 0, got {seed!r}; give another one.")
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds everything for the epoch that starts."""
        loader = engine.state.dataloader
        if getattr(loader, "persistent_workers", False):
            raise ValueError("persistent_workers: expected False, got True; workers that live on cannot be seeded.")
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch, idist.get_rank()]).generate_state(1)[0])
        manual_seed(seed)
        for owner in (loader, getattr(loader, "sampler", None)):
            if generator := getattr(owner, "generator", None):
                generator.manual_seed(seed)
        set_rnd(getattr(loader, "dataset", None), seed)
        if loader is not None:
            engine.set_data(loader)

    def state_dict(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Raises for another seed than the checkpoint's."""
        if state_dict["seed"] != self.seed:
            wanted = state_dict["seed"]
            raise ValueError(f"seed: expected {wanted} as in the checkpoint, got {self.seed}; go on with the former.")
