"""From files of text to token files on disk, in bounded memory: ``disttrain data prepare``."""
