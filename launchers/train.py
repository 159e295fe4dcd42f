"""torchrun's target: torchrun --nproc-per-node 2 launchers/train.py CONFIG [a.b=c ...]."""

from disttrain.worker import main

if __name__ == "__main__":
    main()
