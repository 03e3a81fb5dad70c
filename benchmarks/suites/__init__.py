"""What the benchmark of the scheduler measures, a module for each section."""
