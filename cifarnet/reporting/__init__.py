"""What a run or an evaluation writes down; imports core and checkpoints."""
