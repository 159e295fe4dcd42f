"""From whatever started this process to a world of workers, and back out again."""
