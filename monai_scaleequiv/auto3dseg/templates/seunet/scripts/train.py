"""What Auto3DSeg starts as ``python train.py run --config_file=CONFIGS --num_epochs=2``."""

import fire

from monai_scaleequiv.auto3dseg import run_training

if __name__ == "__main__":
    fire.Fire({"run": run_training})
