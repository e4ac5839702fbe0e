"""What a run or an evaluation writes."""
