"""Ray's driver: python launchers/ray_cluster.py --workers 2 CONFIG [a.b=c ...]."""

from disttrain.launchers.ray_cluster import main

if __name__ == "__main__":
    main()
