"""Auto3DSeg: the algorithm ``seunet``, for ``AutoRunner`` and ``BundleGen`` beside MONAI's own algorithms.

One line of ``AutoRunner``'s input file, or its argument ``algos``, asks for it::

    algos: {seunet: {_target_: monai_scaleequiv.auto3dseg.SEUNetAlgo}}
"""

from monai_scaleequiv.auto3dseg._algo import SEUNetAlgo
from monai_scaleequiv.auto3dseg._runs import InferClass, run_training

__all__ = ["InferClass", "SEUNetAlgo", "run_training"]
