"""mpirun's target: mpiexec -n 2 python -m mpi4py launchers/mpi.py CONFIG [a.b=c ...]."""

from disttrain.launchers.mpi import main

if __name__ == "__main__":
    main()
